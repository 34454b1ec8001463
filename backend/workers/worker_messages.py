"""Messages between the engine process and its workers, one a rank: msgpack with a schema, never pickle.

What a step says of its sequences is in terms of what the worker knows of them already; that is `step_codec`'s.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from backend.batch import Sampled
from backend.engine_settings import EngineSettings
from backend.library.files import ModelFiles
from backend.measured_rank import MeasuredRank
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.request import Sampling
from backend.workers.meeting import Meeting
from kvcache.layout import LayerCache
from kvcache.transfer import Transfer, TransferDone

# The fields of a Sampled.
Choice = tuple[int | None, float | None, tuple[tuple[int, float], ...]]


class Message(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front: names of fields would be most of a step's bytes."""


class Describe(Message, frozen=True):
    """To a worker: what is this model? Answered by Described or Refused."""

    files: ModelFiles


class Load(Message, frozen=True):
    """To a worker: become this rank of the Plan. Answered by Loaded or Refused, after any number of Loading.

    Attributes:
        layers: what the whole model's attention layers keep, of which a rank keeps its share.
        meeting: where the ranks of several meet.
    """

    settings: EngineSettings
    plan: Plan
    rank: int
    layers: tuple[LayerCache, ...]
    meeting: Meeting


class WarmUp(Message, frozen=True):
    """To a worker, when all have loaded: compute something together. Answered by Warm.

    Apart from Load, because in a collective a rank waits for the others only so long, and one may read slowly.
    """


class Measure(Message, frozen=True):
    """To a worker, between steps: what is your memory now? Answered by Measured."""


class SpanChange(Struct, frozen=True, array_like=True):
    """How the pages of one sequence and group differ from what the worker knows: some in front go, some are appended.

    `first` is the new span's, `dropped` counts ids that go.
    """

    group: int
    first: int
    dropped: int
    appended: list[int]


class SliceOrder(Struct, frozen=True, array_like=True):
    """A Slice in terms of what the worker knows of its sequence.

    Attributes:
        base: where set, the sequence's tokens are known from this position on only, and `tokens` are all of those.
        tokens: those of the positions behind the known ones, up to the slice's end.
        sampling: comes with the first slice that samples, and when it changes.
    """

    sequence: int
    start: int
    count: int
    prompt_length: int
    length: int
    samples: bool
    base: int | None
    tokens: list[int]
    spans: list[SpanChange]
    sampling: Sampling | None = None


class Step(Message, frozen=True):
    """To a worker: run this Batch. Answered by StepDone or StepFailed.

    `forgotten` are sequences of which nothing needs to be known any more.
    """

    number: int
    slices: list[SliceOrder]
    forgotten: list[int] = []
    transfers: tuple[Transfer, ...] = ()


class Poll(Message, frozen=True):
    """To a worker: which transfers are over? Waits up to `patience` seconds for a first. Answered by StepDone."""

    patience: float


class Loading(Message, frozen=True):
    """From a worker: a stage of the start began or moved on; as the engine's Progress."""

    stage: str
    done: int = 0
    total: int = 0


class Described(Message, frozen=True):
    """From a worker: the whole model's facts."""

    facts: ModelFacts


class Loaded(Message, frozen=True):
    """From a worker: it has its share, and this is what the engine has to know of it.

    `kernel_orders`, `recompute_lengths` and `scaled_past` are as in Runner and ServedModel.
    """

    device: str
    weights_bytes: int
    kernel_orders: tuple[str, ...]
    recompute_lengths: tuple[int, ...] = ()
    scaled_past: int | None = None


class Warm(Message, frozen=True):
    """From a worker: it is ready to step."""


class Measured(Message, frozen=True):
    """From a worker: its memory by the Plan's terms."""

    rank: MeasuredRank


class Refused(Message, frozen=True):
    """From a worker: the start ended in a ShardwiseError, of which these are the parts."""

    code: str
    exit_status: int
    what: str
    why: str
    hint: str


class Broken(Message, frozen=True):
    """From a worker, as its last word, where its heart beats: a bug of ours, or a lost device, ends it."""

    text: str


class StepDone(Message, frozen=True):
    """From a worker: it is done.

    Only rank 0 has `results`, one per slice; `over` are the transfers that ended. `collectives` counts those that this
    rank has begun since it was loaded.
    """

    results: list[Choice | None]
    collectives: int
    over: tuple[TransferDone, ...] = ()


class StepFailed(Message, frozen=True):
    """From a worker: the step raised. Where all ranks have begun as many collectives, the group can go on."""

    text: str
    collectives: int
    over: tuple[TransferDone, ...] = ()


class Pulse(Message, frozen=True):
    """From a worker's heartbeat thread, on a socket of its own: it lives; a step has been running for so long."""

    step_seconds: float


ToWorker = Describe | Load | WarmUp | Measure | Step | Poll
FromWorker = Loading | Described | Loaded | Warm | Measured | Refused | StepDone | StepFailed
FromHeart = Pulse | Broken

encoder = msgspec.msgpack.Encoder()
to_worker_decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
from_worker_decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
from_heart_decoder: msgspec.msgpack.Decoder[FromHeart] = msgspec.msgpack.Decoder(FromHeart)


def pack_results(sampled: list[Sampled | None]) -> list[Choice | None]:
    """Results as StepDone has them."""
    return [None if one is None else (one.token, one.logprob, one.top) for one in sampled]


def unpack_results(step: StepDone) -> list[Sampled | None]:
    """The results that `pack_results` packed."""
    return [None if one is None else Sampled(*one) for one in step.results]
