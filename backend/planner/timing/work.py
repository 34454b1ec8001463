"""Work: what a step has to read, multiply and send, rank by rank and stage by stage. Plain data; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from backend.hardware.cluster import Network
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.timing.device_speed import DeviceSpeed, NumberKind


@dataclass(frozen=True, slots=True)
class RankWork:
    """One rank.

    Attributes:
        share: its part of the model, of its stage's layers only; `share.vocabulary_parameters` are 0 where its stage
            has neither the embedding nor the output layer.
        device: that computes it.
        weight_bytes: of all its weights as stored, those in host memory included.
        kv_bytes: of one position over the share's layers, scales included; windows are taken off here, not there.
        element: bytes of an element of the embedding and the output layer, which formats leave alone.
        expert_bytes: of its experts as stored; None where they are stored as the other linears are.
        state_layers, state_bytes: layers that keep states of a fixed size, and the bytes of one sequence's in all of
            them on this rank.
        hosted_bytes: of weights that are copied from host memory in each step, at `host_rate` GB/s.
    """

    share: ModelFacts
    device: DeviceSpeed
    weight_bytes: int
    kv_bytes: int
    element: int = 2
    expert_bytes: int | None = None
    state_layers: int = 0
    state_bytes: int = 0
    hosted_bytes: int = 0
    host_rate: float = 0.0

    @property
    def layers(self) -> int:
        return len(self.share.layers) + self.state_layers


@dataclass(frozen=True, slots=True)
class StageWork:
    """The ranks that divide the same layers, and what joins them; None for one, and between processes of a CPU."""

    ranks: tuple[RankWork, ...]
    link: Link | Network | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One replica, and how many there are.

    Attributes:
        stages: in their order.
        between: the slowest way from one stage to the next; None for one stage.
        ways: each of them, where batches under way hide how long a message takes; then `between` is not looked at.
        returned: seconds from the last stage back to the engine, and from there to the first one.
        hidden: size of a hidden state.
        element: bytes of an element of what is sent and added up.
        number: what weights are multiplied as; a device that has none of that kind widens them to bf16.
        replicas: each with the same stages.
        experts: of a layer over all ranks, where each rank has whole ones; 0 where each has a slice of every expert.
    """

    stages: tuple[StageWork, ...]
    hidden: int
    between: Link | Network | None = None
    element: int = 2
    number: NumberKind = "bf16"
    replicas: int = 1
    experts: int = 0
    ways: tuple[Network, ...] = ()
    returned: float = 0.0
