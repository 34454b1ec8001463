"""Messages between an engine and the workers of its stages, on the same machine or another: msgpack with a schema.

    engine  LoadStage, WarmUp ────►  worker       lines: orders, pulse (both to the engine's door)
            Join(epoch) ─────────►                links: frames of hidden states from stage to stage (`link_protocol`)
            StageStep ───────────►
    engine  ◄─ StageDone, StageFailed, Polled, LinkLost, Pulse

Numbers of steps begin with 0 in each epoch and are consecutive. A worker ignores whatever is of another epoch than the
one it has joined last, and an engine ignores whatever is of another than its own.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from backend.layer_span import LayerSpan
from backend.workers.worker_messages import (
    Choice,
    Describe,
    Described,
    Load,
    Loading,
    Measure,
    Measured,
    Poll,
    Pulse,
    Refused,
    Step,
    Warm,
    WarmUp,
)
from kvcache.transfer import TransferDone


class Message(Struct, frozen=True, array_like=True, tag=True):
    """Sent as an array with its type's name in front."""


class LoadStage(Message, frozen=True):
    """To a worker: become this rank of this stage. Answered by StageLoaded or Refused, after any number of Loading.

    Attributes:
        load: as for a worker of one machine: its `plan` is the stage's own (`backend.planner.stage_plan`), its `rank`
            counts within the stage, its `layers` are the whole model's. `load.settings.files` are the head's.
        span: the stage's layers.
        stage: its number.
        offer: where the stage's tensors can be had, if this machine does not have the model: a `tensor_offer`, encoded;
            empty on the head itself.
        accepts: whether a link comes in here, so that the worker has to listen: rank 0 of every stage but the first.
        secret: what neighbours show each other; of this engine process only.
    """

    load: Load
    span: LayerSpan
    stage: int
    offer: bytes
    accepts: bool
    secret: bytes


class StageLoaded(Message, frozen=True):
    """From a worker: it has its share. `link` is where it listens for its neighbour; empty where nothing comes in.

    The rest as in `worker_messages.Loaded`.
    """

    link: str
    device: str
    weights_bytes: int
    kernel_orders: tuple[str, ...]
    recompute_lengths: tuple[int, ...] = ()
    scaled_past: int | None = None


class Join(Message, frozen=True):
    """To a worker: from now on only this epoch counts. Answered by Joined when its links stand.

    It forgets what it was told of sequences, waits until none of its transfers runs, and closes links of earlier
    epochs.

    Attributes:
        forward: where the next stage's rank 0 listens; empty for the last stage and for ranks but the first.
    """

    epoch: int
    forward: str


class Joined(Message, frozen=True):
    """From a worker: its links of this epoch stand."""

    epoch: int


class StageStep(Message, frozen=True):
    """To every worker of every stage: run this Batch in its turn.

    Attributes:
        step: the Batch, encoded by one encoder for the whole epoch.
        until: stages from this number on sit it out (a lost stage's pages are being computed again): they only begin
            its transfers, and get no frame. As many as there are stages for all others.
    """

    epoch: int
    number: int
    step: Step
    until: int


class StageDone(Message, frozen=True):
    """From a worker: it is done with a step. Only rank 0 of the last stage has `results`.

    `seconds` is the time it computed for, waiting left out; `waited` the time it had nothing to do before.
    """

    epoch: int
    number: int
    results: list[Choice | None]
    collectives: int
    seconds: float
    waited: float = 0.0
    over: tuple[TransferDone, ...] = ()


class StageFailed(Message, frozen=True):
    """From a worker: a step raised here, or on a stage before, in which case it was skipped here."""

    epoch: int
    number: int
    text: str
    collectives: int
    over: tuple[TransferDone, ...] = ()


class LinkLost(Message, frozen=True):
    """From a worker: a link of this epoch broke. `forward` says which of its two."""

    epoch: int
    forward: bool
    text: str


class Polled(Message, frozen=True):
    """From a worker: the answer to Poll, with the transfers that are over."""

    epoch: int
    over: tuple[TransferDone, ...] = ()


class Broken(Message, frozen=True):
    """From a worker, as its last word: a bug of ours or a lost device ends it."""

    text: str


class Beat(Message, frozen=True):
    """To a worker, each second on the line of its pulse: the engine lives."""


ToStage = Describe | LoadStage | WarmUp | Join | Measure | StageStep | Poll | Beat
FromStage = (
    Loading
    | Described
    | StageLoaded
    | Warm
    | Joined
    | Measured
    | Refused
    | StageDone
    | StageFailed
    | LinkLost
    | Polled
    | Pulse
    | Broken
)

encoder = msgspec.msgpack.Encoder()
to_stage_decoder: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)
from_stage_decoder: msgspec.msgpack.Decoder[FromStage] = msgspec.msgpack.Decoder(FromStage)
