"""VllmBench: shapes in formats as vLLM would run them, as FitPlans; what its memory takes is `planner.vllm`'s. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from backend.errors import SettingError
from backend.planner.cost import cost_of
from backend.planner.fit.candidate import Question
from backend.planner.fit.packings import packing
from backend.planner.fit.report import FitPlan, GpuUse, Verdict
from backend.planner.fit.shape import Seat, Shape
from backend.planner.fit.verdict import estimate_error
from backend.planner.fit.vllm_speed import vllm_speed
from backend.planner.plan import MemoryTerm
from backend.planner.units import human_bytes
from backend.planner.vllm.account import account
from backend.planner.vllm.deployment import NEWEST, Version, VllmDeployment, default_deployment
from backend.planner.vllm.division import refusal
from backend.planner.vllm.kv_groups import kv_groups
from backend.planner.vllm.vllm_memory import StageMemory, VllmMemory

# Formats that vLLM makes of 16-bit weights while it loads them, by our names: its option, and how they are packed.
_LOADED = {"fp8": ("fp8", "fp8-tensor"), "nf4": ("bitsandbytes", "nf4")}
_LEAST = {"fp8": (8, 0), "nf4": (7, 0)}
_RUNS = "vLLM runs this; shardwise plans it and does not start vLLM."


class VllmBench:
    """One report's plans for vLLM."""

    smaller: tuple[str, ...] = ("fp8", "nf4")
    smaller_kv: str = "fp8"

    def __init__(self, asked: Question) -> None:
        self.asked = asked
        self.version = parse_version(asked.ask.engine_version)

    def of_shape(self, shape: Shape) -> list[FitPlan]:
        """In the formats that were asked for, else in those that it is worth trying."""
        ask = self.asked.ask
        if not shape.seats[0][0].gpus or shape.experts == "tensor":
            return []
        if ask.weights or ask.kv_formats:
            pairs = [(one, kv) for one in ask.weights or ("model",) for kv in ask.kv_formats or ("model",)]
            return [plan for plan in (self.judge(shape, *pair) for pair in pairs) if plan is not None]
        return [plan for plan in self._worth(shape) if plan is not None]

    def _worth(self, shape: Shape) -> Iterator[FitPlan | None]:
        plain = self.judge(shape, "model", "model")
        yield plain
        if plain is None or (plain.verdict.fits and plain.verdict.kind == "roomy" and self.asked.ask.goal == "latency"):
            return
        for weights in ("model", *self.smaller):
            one = plain if weights == "model" else self.judge(shape, weights, "model")
            if one is not plain:
                yield one
            if one is not None and (one.verdict.kind != "too large" or one.verdict.term == "kv"):
                yield self.judge(shape, weights, self.smaller_kv)
            if one is not None and one.verdict.fits:
                return

    def judge(
        self, shape: Shape, weights: str, kv_format: str, hosted: bool = False, asked: Question | None = None
    ) -> FitPlan | None:
        """None where vLLM would refuse it whatever the memory, and for layers in host memory, which are not planned."""
        asked = asked or self.asked
        deployments = [] if hosted else self._deployments(asked, shape, weights, kv_format)
        if not deployments or refusal(asked.model, deployments[0]):
            return None
        return self._plan(asked, shape, weights, kv_format, deployments)

    def _deployments(self, asked: Question, shape: Shape, weights: str, kv_format: str) -> list[VllmDeployment]:
        """One for each replica: of its GPUs, the one with the least memory."""
        machines = asked.cluster.machines
        stored = asked.model.stored.packing
        if weights in _LOADED and stored not in ("model", ""):
            return []
        found: list[VllmDeployment] = []
        for seats in shape.seats:
            gpus = [machines[seat.machine].gpus[number] for seat in seats for number in seat.gpus]
            least = min(gpus, key=lambda gpu: gpu.free)
            capability = min(gpu.capability for gpu in gpus)
            if capability < _LEAST.get(weights, (0, 0)) or (kv_format == "fp8" and capability < (8, 9)):
                return []
            found.append(
                default_deployment(
                    asked.model,
                    gpu=least.name,
                    memory=least.total,
                    capability=capability,
                    version=self.version,
                    tp=shape.tensor,
                    pp=shape.stages,
                    expert_parallel=shape.experts == "expert",
                    utilization=asked.ask.utilization,
                    max_model_len=asked.context,
                    kv_dtype="auto" if kv_format in ("model", "auto") else kv_format,
                    packing=_LOADED[weights][1] if weights in _LOADED else None if weights == "model" else weights,
                    held=max(gpu.total - gpu.free for gpu in gpus),
                )
            )
        return found

    def _plan(
        self, asked: Question, shape: Shape, weights: str, kv_format: str, deployments: list[VllmDeployment]
    ) -> FitPlan:
        made = {one: account(asked.model, one) for one in dict.fromkeys(deployments)}
        memories = [made[one] for one in deployments]
        users = asked.users(shape.replicas)
        worst = min(memories, key=lambda memory: memory.concurrency)
        verdict = _verdict(asked, worst, users)
        at_once = sum(int(memory.concurrency) for memory in memories)
        speed = None
        if verdict.kind != "too large":
            speed = vllm_speed(asked, shape, deployments[0], memories[0])
        names = [
            asked.cluster.machines[seat.machine].gpus[number].name
            for seats in shape.seats for seat in seats for number in seat.gpus
        ]  # fmt: skip
        return FitPlan(
            replicas=shape.replicas,
            stages=shape.stages,
            tensor=shape.tensor,
            experts="expert" if shape.experts == "expert" else "tensor",
            weights=weights,
            kv_format=kv_format,
            hosted=0,
            devices=tuple(_devices(asked, shape, deployments, memories)),
            kv_tokens=sum(memory.kv_tokens for memory in memories),
            largest_context=min(_largest(asked, *pair) for pair in zip(deployments, memories, strict=True)),
            concurrency=at_once,
            verdict=verdict,
            speed=speed,
            cost=cost_of(speed.throughput, names, asked.ask.price) if speed else None,
            runnable=False,
            blocked=_RUNS,
            options=tuple(_options(shape, deployments[0], weights)),
            reasons=tuple(_reasons(asked, shape, verdict, deployments[0], memories[0])),
        )


def parse_version(text: str) -> Version:
    """ "0.19.0" as numbers; the newest known where nothing is said.

    Raises SettingError for what is no version.
    """
    if not text:
        return NEWEST
    parts = text.removeprefix("v").split(".")
    if not all(part.isdigit() for part in parts):
        raise SettingError(f"{text} is no version of vLLM.", "Versions are numbers with points.", "Write 0.19.0 or so.")
    return tuple(int(part) for part in parts)


def _verdict(asked: Question, memory: VllmMemory, users: int) -> Verdict:
    """vLLM's own, and whether the pool has room for all users at once, and for what estimates may be wrong by."""
    found = memory.verdict
    if not found.fits:
        return found
    pool, needed = min(stage.kv for stage in memory.stages), users * memory.needed
    if memory.concurrency < users:
        sentence = (
            f"It starts, and {users:,} contexts of {asked.context:,} would need {human_bytes(needed)} of a pool that "
            f"has {human_bytes(pool)}: {int(memory.concurrency):,} fit at once, and others wait."
        )
        return Verdict("fragile", "kv", needed, pool, sentence)
    stage = min(memory.stages, key=lambda one: one.kv)
    terms = (("weights", stage.weights), ("activations", stage.activations), ("libraries", stage.non_torch))
    error = estimate_error(terms, asked.model.exact)
    if pool - needed < error:
        sentence = (
            f"It starts, and the pool has {human_bytes(pool - needed)} beside what was asked: less than the "
            f"{human_bytes(error)} by which such an estimate may be wrong."
        )
        return Verdict("fragile", "kv", needed, pool, sentence)
    return found


def _largest(asked: Question, deployment: VllmDeployment, memory: VllmMemory) -> int:
    """Of one sequence, whatever --max-model-len."""
    groups = kv_groups(asked.model, deployment)
    most, steps = asked.model.facts.max_positions, deployment.max_num_batched_tokens
    return groups.largest(memory.blocks, most, steps) if memory.blocks > 0 else 0


def _devices(
    asked: Question, shape: Shape, deployments: list[VllmDeployment], memories: list[VllmMemory]
) -> Iterator[GpuUse]:
    for seats, deployment, memory in zip(shape.seats, deployments, memories, strict=True):
        for number, (seat, stage) in enumerate(zip(seats, memory.stages, strict=True)):
            for rank, gpu in enumerate(seat.gpus):
                yield _use(asked, seat, (number, rank, gpu), deployment, stage)


def _use(
    asked: Question, seat: Seat, place: tuple[int, int, int], deployment: VllmDeployment, memory: StageMemory
) -> GpuUse:
    stage, rank, number = place
    gpu = asked.cluster.machines[seat.machine].gpus[number]
    terms = (
        ("weights", memory.weights),
        ("kv", max(0, memory.kv)),
        ("activations", memory.activations),
        ("graphs", memory.graphs),
        ("communication", memory.non_torch),
        ("context", memory.context),
    )
    usable = gpu.total - deployment.held
    return GpuUse(
        machine=seat.machine,
        gpu=number,
        name=gpu.name,
        stage=stage,
        rank=rank,
        total=gpu.total,
        usable=usable,
        terms=tuple(MemoryTerm(name, count) for name, count in terms if count),
        unused=usable - sum(count for _, count in terms),
    )


def _options(shape: Shape, deployment: VllmDeployment, weights: str) -> Iterator[str]:
    """Of `vllm serve`."""
    pairs: tuple[tuple[str, str | int | float | None], ...] = (
        ("--tensor-parallel-size", shape.tensor if shape.tensor > 1 else None),
        ("--pipeline-parallel-size", shape.stages if shape.stages > 1 else None),
        ("--max-model-len", deployment.max_model_len),
        ("--quantization", _LOADED[weights][0] if weights in _LOADED else None),
        ("--kv-cache-dtype", None if deployment.kv_dtype == "auto" else deployment.kv_dtype),
        ("--gpu-memory-utilization", deployment.utilization),
    )
    for option, value in pairs:
        if value is not None:
            yield from (option, str(value))
    if deployment.expert_parallel:
        yield "--enable-expert-parallel"


def _reasons(
    asked: Question, shape: Shape, verdict: Verdict, deployment: VllmDeployment, memory: VllmMemory
) -> Iterator[str]:
    yield verdict.sentence
    version = ".".join(map(str, deployment.version))
    yield (
        f"By vLLM {version}'s own accounting: KV gets {deployment.utilization:g} of the GPU less weights, the profiled "
        "peak of a step, and what is beside torch."
    )
    if memory.layers_billed > len(asked.model.facts.layers):
        yield f"vLLM fills groups of layers up: the pool pays for {memory.layers_billed} layers."
    if asked.model.stored.packing != "model":
        yield f"Weights stay packed as the checkpoint has them ({packing(asked.model.stored.packing).title})."
    if shape.replicas > 1:
        yield f"Start it {shape.replicas} times, and share requests out between them."
