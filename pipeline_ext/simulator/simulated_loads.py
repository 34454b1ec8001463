"""SimulatedLoads: the StageLoads of a plan over simulated machines."""

from __future__ import annotations

from backend.engine_settings import EngineSettings
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.planner.plan import Plan, Rank
from backend.workers.meeting import Meeting
from backend.workers.worker_messages import Load
from pipeline_ext.failover import StageNeed
from pipeline_ext.messages import LoadStage
from pipeline_ext.peer import Peer
from pipeline_ext.simulator.simulated_cluster import LAYER_BYTES

MAX_CONTEXT = 32


class SimulatedLoads:
    """StageLoads of one plan: (machine, first layer, stop) of each stage."""

    def __init__(self, stages: list[tuple[str, int, int]], ranks: int, step_tokens: int, layers: int) -> None:
        self._stages, self._ranks, self._layers = stages, ranks, layers
        own = tuple(Rank(number, "cpu", ()) for number in range(ranks))
        self._plan = Plan(
            model="toy", architecture="Toy", dtype="float32", weight_format="model", kv_format="model",
            tensor_parallel=ranks, pipeline_stages=1, ranks=own, max_context=MAX_CONTEXT, max_sequences=4,
            step_tokens=step_tokens, page_tokens=1, page_bytes=1, pages=1, token_bytes=1, host_pages=0, disk_bytes=0,
            cache_dir="", threads=1, reasons=(),
        )  # fmt: skip
        files = ModelFiles(name="toy", format="safetensors", weights=(), folder="/toy", bytes=1)
        self._settings = EngineSettings(files=files)

    def __len__(self) -> int:
        return len(self._stages)

    def home(self, stage: int) -> str:
        return self._stages[stage][0]

    def need(self, stage: int) -> StageNeed:
        _, first, stop = self._stages[stage]
        size = (stop - first) * LAYER_BYTES
        return StageNeed(tuple(size // self._ranks for _ in range(self._ranks)))

    def orders(self, stage: int, peer: Peer, others: tuple[int, ...]) -> tuple[LoadStage, ...]:
        _, first, stop = self._stages[stage]
        span = LayerSpan(first, stop, self._layers, first, stop)
        loads = [Load(self._settings, self._plan, rank, (), Meeting("", "")) for rank in range(self._ranks)]
        return tuple(LoadStage(load, span, stage, b"", stage > 0 and load.rank == 0, b"secret") for load in loads)

    def environment(self, stage: int, peer: Peer) -> tuple[tuple[str, str], ...]:
        return ()

    def can_replan(self, peers: tuple[Peer, ...]) -> bool:
        return sum(peer.machine.memory.total // LAYER_BYTES for peer in peers) >= self._layers
