"""speed_work: the Work of a published run: its model divided over the kind of GPU that its row names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from backend.hardware.gpu_names import is_sxm
from backend.hardware.gpu_table import GpuFacts
from backend.planner.fit.known_model import KnownModel, StateLayers
from backend.planner.links import Link
from backend.planner.model_facts import ModelFacts
from backend.planner.shares import divisible, of_rank, share_out
from backend.planner.timing.device_speed import NumberKind, kind_speed
from backend.planner.timing.pace import pace
from backend.planner.timing.work import RankWork, StageWork, Work
from tests.fit.speed_case import SkippedError, SpeedCase

_GIB = 1 << 30
# Bytes of a parameter in a linear, and what it is multiplied as. int8 and int4 alone are weights only.
_WEIGHTS: dict[str, tuple[float, NumberKind]] = {
    "bf16": (2, "bf16"),
    "fp8": (1, "fp8"),
    "w8a8": (1, "int8"),
    "int8": (1, "bf16"),
    "nvfp4": (4.5 / 8, "fp4"),
    "mxfp4": (4.25 / 8, "fp4"),
    "int4": (4.25 / 8, "bf16"),
    "q4_0": (4.5 / 8, "bf16"),
    "q4_k_m": (4.89 / 8, "bf16"),
    "q5_k_m": (5.7 / 8, "bf16"),
    "q6_k": (6.56 / 8, "bf16"),
    "q8_0": (8.5 / 8, "bf16"),
}
_ALIKE = {
    **dict.fromkeys(("model", "fp16", "f16", "bfloat16", "float16", "half"), "bf16"),
    **dict.fromkeys(("fp8-block", "fp8-tensor", "fp8_block", "float8", "w8a8-fp8"), "fp8"),
    **dict.fromkeys(("awq", "gptq", "w4a16", "awq-int4", "gptq-int4", "marlin"), "int4"),
    **dict.fromkeys(("gptq8", "w8a16", "bnb-int8", "int8-weight-only"), "int8"),
    **dict.fromkeys(("nf4", "nf4-double", "bnb-4bit", "q4_k_s", "iq4_xs", "q4_1"), "q4_0"),
    **dict.fromkeys(("fp4", "nvfp4-w4a4"), "nvfp4"),
    **dict.fromkeys(("q5_0", "q5_1", "q5_k_s"), "q5_k_m"),
    "int8-w8a8": "w8a8",
}
# GB/s of a lane by the generation of PCIe.
_LANES = {3: 15.75, 4: 31.5, 5: 63.0, 6: 121.0}
# Of a GPU's memory, what engines take; of that, what is neither weights nor pages.
_WHOLE_WINDOWS = ("tensorrt-llm",)
_UTILIZATION, _OTHERS, _LEAST_POOL = 0.9, 1.5 * _GIB, 0.02


def work_of(case: SpeedCase, known: KnownModel, gpu: GpuFacts) -> Work:
    """Raises SkippedError for a format that is not known, and for a model that does not divide so."""
    facts, name = known.facts, _format(case, known)
    if not divisible(facts, case.tp) or case.pp > len(facts.layers):
        raise SkippedError("does not divide")
    _, number = _WEIGHTS[name]
    link = _link(gpu, case.tp) if case.tp > 1 else None
    stages = tuple(
        StageWork(tuple(_ranks(case, part, known.states, gpu, name)), link) for part in _stages(facts, case.pp)
    )
    between = _link(gpu, case.pp) if case.pp > 1 else None
    return Work(stages, facts.hidden, between, number=number, replicas=case.replicas)


def batch_of(case: SpeedCase, work: Work, gpu: GpuFacts) -> int:
    """Sequences of one replica that fit at once, as many as the engine takes, or as the row says."""
    most = case.batch or pace(case.engine, work.stages[0].ranks[0].device.family).most_sequences
    total = gpu.mem_total_gib_reported * _GIB
    whole = case.engine.lower() in _WHOLE_WINDOWS
    fits = most
    for rank in (rank for stage in work.stages for rank in stage.ranks):
        room = max(_UTILIZATION * total - rank.weight_bytes - _OTHERS, _LEAST_POOL * total)
        fits = min(fits, int(room / max(1.0, _sequence_bytes(rank, case.prompt + case.answer, whole))))
    return max(1, fits)


def _sequence_bytes(rank: RankWork, positions: int, whole: bool) -> float:
    """Of one sequence's pages: windows keep no more than themselves, but for engines that keep them whole."""
    sizes = [layer.kv_heads * (layer.key_size + layer.stored_values) for layer in rank.share.layers]
    kept = [positions if whole else min(positions, layer.window or positions) for layer in rank.share.layers]
    held = sum(size * count for size, count in zip(sizes, kept, strict=True))
    return held * rank.kv_bytes / max(1, sum(sizes)) + rank.state_bytes


def _format(case: SpeedCase, known: KnownModel) -> str:
    """The name in `_WEIGHTS`; where the row has none, the checkpoint's own."""
    said = case.weights or known.stored.packing
    name = said.removeprefix("gguf:").lower().partition(" ")[0]
    name = _ALIKE.get(name, name)
    if name not in _WEIGHTS:
        raise SkippedError(f"weights {said}")
    return name


def _ranks(
    case: SpeedCase, facts: ModelFacts, states: Sequence[StateLayers], gpu: GpuFacts, weights: str
) -> Iterator[RankWork]:
    stored, _ = _WEIGHTS[weights]
    kept = sum(layers.count for layers in states)
    state_bytes = sum(layers.count * layers.bytes for layers in states)
    shares = share_out(facts, [1.0] * case.tp, "tensor")
    for number in range(case.tp):
        share = of_rank(facts, shares, number)
        linears = share.parameters - share.vocabulary_parameters
        experts = int(share.expert_parameters * stored) if share.experts else None
        # mxfp4 checkpoints store experts so, and nothing else.
        other = 2.0 if weights == "mxfp4" and share.experts else stored
        rest = (linears - share.expert_parameters) * other
        elements = sum(layer.kv_heads * (layer.key_size + layer.stored_values) for layer in share.layers)
        yield RankWork(
            share,
            kind_speed(gpu),
            weight_bytes=int(rest + (experts or 0) + share.vocabulary_parameters * 2),
            kv_bytes=elements * (1 if case.kv in ("fp8", "int8") else 2),
            expert_bytes=experts,
            state_layers=kept // case.pp,
            state_bytes=state_bytes // case.tp // case.pp,
        )


def _stages(facts: ModelFacts, count: int) -> Iterator[ModelFacts]:
    """The layers in even parts, the embedding on the first and the output layer on the last."""
    layers = len(facts.layers)
    for stage in range(count):
        first, last = stage * layers // count, (stage + 1) * layers // count
        part = (last - first) / layers
        embedding = facts.vocabulary_parameters - facts.output_parameters if stage == 0 else 0
        output = facts.output_parameters if stage == count - 1 else 0
        if count == 1:
            embedding, output = facts.vocabulary_parameters - facts.output_parameters, facts.output_parameters
        yield replace(
            facts,
            layers=facts.layers[first:last],
            heads=facts.heads[first:last],
            query_parameters=facts.query_parameters[first:last],
            key_parameters=facts.key_parameters[first:last],
            columns=tuple(replace(one, parameters=int(one.parameters * part)) for one in facts.columns),
            experts=tuple(replace(one, parameters=int(one.parameters * part)) for one in facts.experts),
            parameters=int((facts.parameters - facts.vocabulary_parameters) * part) + embedding + output,
            vocabulary_parameters=embedding + output,
            output_parameters=output,
        )


def _link(gpu: GpuFacts, ranks: int) -> Link:
    """NVLink where the kind has it: between more than two only where it is not a bridge."""
    if gpu.nvlink_gbs_bidir_per_gpu and (is_sxm(gpu) or ranks == 2):
        return Link("nvlink", gpu.nvlink_gbs_bidir_per_gpu / 2, True, "NVLink", switched=is_sxm(gpu))
    generation = int(gpu.pcie[0]) if gpu.pcie[:1].isdigit() else 4
    return Link("pcie", _LANES.get(generation, 31.5), generation >= 5, "PCIe")
