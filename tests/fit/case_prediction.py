"""CasePrediction: what is predicted of a run, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.account import account
from backend.planner.vllm.deployment import VllmDeployment, default_deployment
from backend.planner.vllm.stages import layer_count
from tests.fit import other_engines
from tests.fit.case_row import CaseRow

GIB = 1 << 30
# Where no GPU is named: weights do not depend on it, unless a kernel of some kinds fills sizes up.
_ANY_GPU = 80.0


@dataclass(frozen=True, slots=True)
class CasePrediction:
    """None where the configuration does not tell enough. Sizes of one GPU, of rank 0 of the first stage.

    `verdict` is one of `fit.report`'s kinds; `skipped` says why there is nothing at all.
    """

    weights_gib: float | None = None
    kv_gib: float | None = None
    kv_tokens: int | None = None
    verdict: str | None = None
    sentence: str = ""
    model_gib: float | None = None
    kv_buffers_gib: float | None = None
    terms: tuple[tuple[str, float], ...] = ()
    skipped: str = ""


def predict(row: CaseRow) -> CasePrediction:
    """Blind: `row` has nothing of what was observed."""
    if row.model is None:
        return CasePrediction(skipped="no facts")
    if row.engine.kind == "llama.cpp":
        return _llama(row, row.model)
    if row.engine.kind == "other":
        return CasePrediction(skipped="engine not covered")
    if row.tp is None:
        return CasePrediction(skipped="tensor parallelism not stated")
    return _served(row, row.model, row.tp)


def _served(row: CaseRow, model: KnownModel, tp: int) -> CasePrediction:
    if row.packing.startswith("gguf:") and row.engine.kind != "vllm":
        return CasePrediction(skipped="packing not covered")
    if tp > min(model.facts.heads, default=1) or row.pp > layer_count(model):
        return CasePrediction(skipped="more ranks than there are heads or layers")
    deployment = _deployment(row, model, tp)
    known = row.gpu.memory_gib is not None
    match row.engine.kind:
        case "vllm":
            return _vllm(model, deployment, known)
        case "sglang":
            pool = other_engines.sglang_pool(model, deployment)
        case _:
            pool = other_engines.tensorrt_pool(model, deployment)
    return _pooled(model, deployment, pool, known)


def _deployment(row: CaseRow, model: KnownModel, tp: int) -> VllmDeployment:
    utilization = row.utilization
    if utilization is None and row.engine.kind != "vllm":
        sglang = row.engine.kind == "sglang"
        utilization = other_engines.SGLANG_FRACTION if sglang else other_engines.TENSORRT_FRACTION
    return default_deployment(
        model,
        gpu=row.gpu.name,
        memory=int((row.gpu.memory_gib or _ANY_GPU) * GIB),
        capability=row.gpu.capability,
        version=row.engine.version if row.engine.kind == "vllm" else (0, 12, 0),
        tp=tp,
        pp=row.pp,
        dp=row.dp,
        expert_parallel=row.expert_parallel,
        utilization=utilization,
        max_model_len=row.max_model_len,
        max_num_seqs=row.max_num_seqs,
        max_num_batched_tokens=row.max_num_batched_tokens,
        kv_dtype=row.kv_dtype,
        block_size=row.block_size,
        dtype=row.dtype,
        packing=row.packing,
        enforce_eager=row.enforce_eager,
        v1=row.engine.v1,
    )


def _vllm(model: KnownModel, deployment: VllmDeployment, known: bool) -> CasePrediction:
    memory = account(model, deployment)
    first = memory.stages[0]
    terms = (("act", first.activations), ("non_torch", first.non_torch), ("graphs", first.graphs))
    return CasePrediction(
        weights_gib=first.weights / GIB,
        kv_gib=first.kv / GIB if known else None,
        kv_tokens=memory.kv_tokens if known else None,
        verdict=memory.verdict.kind if known else None,
        sentence=memory.verdict.sentence if known else "",
        terms=tuple((name, size / GIB) for name, size in terms),
    )


def _pooled(model: KnownModel, deployment: VllmDeployment, pool: int, known: bool) -> CasePrediction:
    weights = other_engines.stage_weights(model, deployment)[0] / GIB
    if not known:
        return CasePrediction(weights_gib=weights)
    tokens = other_engines.pool_tokens(model, deployment, pool)
    fits = "too large" if pool <= 0 else "fragile" if tokens < deployment.max_model_len else "fits"
    return CasePrediction(weights_gib=weights, kv_gib=pool / GIB, kv_tokens=tokens, verdict=fits)


def _llama(row: CaseRow, model: KnownModel) -> CasePrediction:
    size = other_engines.llama_weights(model, row.packing) if row.packing.startswith("gguf:") else None
    context = row.max_model_len
    kv = other_engines.llama_kv(model, context or model.facts.max_positions, row.kv_dtype)
    verdict = None
    if size is not None and row.gpu.memory_gib is not None:
        room = row.gpu.memory_gib * GIB * max(row.pp, 1)
        verdict = "too large" if size > room else "fragile" if size + kv > room else "fits"
    return CasePrediction(
        model_gib=size / GIB if size is not None else None,
        kv_buffers_gib=kv / GIB if context else None,
        verdict=verdict,
    )
