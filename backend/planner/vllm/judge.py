"""The verdict on vLLM's memory: which of its ways to fail it meets first, if any, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.report import Verdict
from backend.planner.units import human_bytes
from backend.planner.vllm.deployment import VllmDeployment
from backend.planner.vllm.vllm_memory import StageMemory

# Of a GPU's memory, what should stay free under load: torch's allocator keeps pieces that fit nothing else. Of logged
# runs on H100, some with 0.5 to 2% left died when they warmed their samplers up, and others ran.
_NARROW = 0.03
_MARGIN = 0.05
# A pool for hardly more than one sequence of the longest length makes all others wait or be computed again.
_ROOMY_SEQUENCES = 2.0


@dataclass(frozen=True, slots=True)
class Pool:
    """What was found of the pool: bytes that one longest sequence takes, on the stage that decides; see VllmMemory."""

    stage: int
    needed: int
    largest_context: int
    concurrency: float


def judge(stages: tuple[StageMemory, ...], pool: Pool, deployment: VllmDeployment) -> Verdict:
    """In the order in which vLLM meets them: weights, other processes, profiling, the pool, and load."""
    heaviest = max(stages, key=lambda stage: stage.weights)
    room = deployment.memory - deployment.held - heaviest.context
    if heaviest.weights > room:
        return _too_large("weights", heaviest.weights, room, "The weights do not load: a rank's")
    if deployment.v1 and deployment.budget > deployment.memory - deployment.held:
        return _held(deployment)
    least = min(stages, key=lambda stage: stage.kv)
    if least.kv <= 0:
        return _nothing_left(least, deployment)
    if pool.concurrency < 1:
        return _short(stages[pool.stage], pool, deployment)
    return _under_load(stages, pool, deployment)


def _too_large(term: str, needed: int, available: int, what: str) -> Verdict:
    sentence = f"{what} take {human_bytes(needed)}, and a GPU has {_sized(available)} for them."
    return Verdict("too large", term, needed, available, sentence)


def _held(deployment: VllmDeployment) -> Verdict:
    free = deployment.memory - deployment.held
    sentence = (
        f"Other processes hold {human_bytes(deployment.held)}: vLLM asks for {human_bytes(deployment.budget)} at start,"
        f" and {_sized(free)} are free."
    )
    return Verdict("too large", "held", deployment.budget, free, sentence)


def _nothing_left(stage: StageMemory, deployment: VllmDeployment) -> Verdict:
    spent = deployment.budget - stage.kv
    term = "weights" if stage.weights >= deployment.budget else "activations"
    sentence = (
        f"Nothing is left for KV after profiling: weights {human_bytes(stage.weights)}, activations"
        f" {human_bytes(stage.activations)} and {human_bytes(spent - stage.weights - stage.activations)} beside torch,"
        f" of {human_bytes(deployment.budget)} that vLLM may take."
    )
    return Verdict("too large", term, spent, deployment.budget, sentence)


def _short(stage: StageMemory, pool: Pool, deployment: VllmDeployment) -> Verdict:
    sentence = (
        f"The KV pool is smaller than one sequence: {deployment.max_model_len:,} positions take"
        f" {human_bytes(pool.needed)}, and {_sized(stage.kv)} are there; {pool.largest_context:,} fit."
    )
    return Verdict("too large", "kv", pool.needed, stage.kv, sentence)


def _under_load(stages: tuple[StageMemory, ...], pool: Pool, deployment: VllmDeployment) -> Verdict:
    tightest = min(stages, key=lambda stage: stage.unused)
    narrow, margin = int(_NARROW * deployment.memory), int(_MARGIN * deployment.memory)
    if tightest.unused < narrow:
        beside = tightest.context + (0 if tightest.graphs_counted else tightest.graphs)
        sentence = (
            f"It starts, and may run out of memory under load: beside what vLLM counts, context and graphs take"
            f" {human_bytes(beside)}, and {_sized(tightest.unused)} stay free; {human_bytes(narrow)} should."
        )
        return Verdict("fragile", "graphs", narrow, tightest.unused, sentence)
    sentence = f"It fits: {pool.concurrency:.1f} sequences of {deployment.max_model_len:,} positions at once."
    kv = stages[pool.stage].kv
    if pool.concurrency >= _ROOMY_SEQUENCES and tightest.unused >= margin:
        return Verdict("roomy", "", pool.needed, kv, sentence)
    return Verdict("fits", "kv" if pool.concurrency < _ROOMY_SEQUENCES else "graphs", pool.needed, kv, sentence)


def _sized(count: int) -> str:
    return human_bytes(count) if count >= 0 else f"-{human_bytes(-count)}"
