"""VllmDeployment: how somebody starts vLLM, and what each of its versions takes where nobody says. Plain data.

Public: VllmDeployment, default_deployment(model, ...) -> VllmDeployment, NEWEST.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.planner.fit.known_model import KnownModel
from backend.planner.model_facts import ModelFacts
from kvcache.layout import Keeps

GIB = 1 << 30
Version = tuple[int, ...]

# The newest whose defaults are known here.
NEWEST: Version = (0, 22, 0)

# vllm/engine/arg_utils.py of 0.8: GPUs of 70 GiB and more take larger steps, A100s left out by name (PR 17885).
_LARGE_GPU = 70 * GIB
# V0 divided prompts into chunks by itself from this context on (PR 6666, first in 0.5.4).
_CHUNKED_FROM = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmDeployment:
    """One `vllm serve` on GPUs that are alike.

    Attributes:
        version: of vLLM, such as (0, 19, 0).
        gpu: the kind of GPU, as its driver names it; it decides defaults and what NCCL holds.
        memory: bytes of one GPU, as CUDA reports them.
        capability: compute capability, such as (9, 0); None where nobody knows.
        tp, pp, dp: ranks of tensor parallelism, stages, and replicas of attention.
        expert_parallel: whether experts lie whole on the `tp * dp` ranks of a stage.
        utilization: the part of `memory` that vLLM may take.
        max_model_len, max_num_seqs, max_num_batched_tokens: positions of a sequence, sequences, tokens of a step.
        kv_dtype: "auto" for the model's, or a name that starts with "fp8"; block_size: tokens of a page.
        dtype, packing: the weights' dtype, and how linears are packed, by a name of `fit.packings`.
        enforce_eager: without CUDA graphs.
        chunked_prefill: whether a step may take a part of a prompt; V0 profiles whole prompts without.
        v1: whether its second engine runs (by default from 0.8 on).
        held: bytes that other processes hold of the GPU.
    """

    version: Version
    gpu: str
    memory: int
    capability: tuple[int, int] | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    expert_parallel: bool = False
    utilization: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_dtype: str = "auto"
    block_size: int = 16
    dtype: str = "bfloat16"
    packing: str = "model"
    enforce_eager: bool = False
    chunked_prefill: bool = True
    v1: bool = True
    held: int = 0

    @property
    def element(self) -> int:
        """Bytes of an element of the dtype."""
        return 4 if self.dtype == "float32" else 2

    @property
    def kv_element(self) -> int:
        return self.element if self.kv_dtype in ("", "auto", "model", "float32") else kv_element_bytes(self.kv_dtype)

    @property
    def budget(self) -> int:
        """Bytes that vLLM may take, its CUDA context left out."""
        return int(self.memory * self.utilization)

    @property
    def expert_ranks(self) -> int:
        return self.tp * self.dp if self.expert_parallel else self.tp


def kv_element_bytes(kv_dtype: str) -> int:
    """Bytes of one element of K or V: 1 of every eight-bit dtype, else 2."""
    return 1 if kv_dtype.startswith(("fp8", "int8", "e4m3", "e5m2")) else 2


def default_deployment(
    model: KnownModel,
    *,
    gpu: str,
    memory: int,
    version: Version = NEWEST,
    capability: tuple[int, int] | None = None,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    expert_parallel: bool = False,
    utilization: float | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_dtype: str = "auto",
    block_size: int | None = None,
    dtype: str | None = None,
    packing: str | None = None,
    enforce_eager: bool = False,
    v1: bool | None = None,
    held: int = 0,
) -> VllmDeployment:
    """What `vllm serve` of that version would run with, what is None taken from its defaults and the model's config."""
    facts, second = model.facts, (version >= (0, 8) if v1 is None else v1)
    length = max_model_len or facts.max_positions
    chunked = second or (version >= (0, 5, 4) and length > _CHUNKED_FROM and not _whole_prompts(model, version))
    steps = max_num_batched_tokens or _step_tokens(
        version, second, chunked, length, gpu, memory, bool(model.other_parameters)
    )
    sequences = max_num_seqs or _sequences(version, second, gpu, memory)
    return VllmDeployment(
        version=version,
        gpu=gpu,
        memory=memory,
        capability=capability,
        tp=tp,
        pp=pp,
        dp=dp,
        expert_parallel=expert_parallel and bool(facts.experts),
        utilization=utilization if utilization is not None else default_utilization(version),
        max_model_len=length,
        max_num_seqs=min(sequences, steps),
        max_num_batched_tokens=steps,
        kv_dtype=kv_dtype,
        block_size=block_size or _block_size(model, version),
        dtype=dtype or _dtype(facts),
        packing=packing or model.stored.packing,
        enforce_eager=enforce_eager,
        chunked_prefill=chunked,
        v1=second,
        held=held,
    )


def default_utilization(version: Version) -> float:
    """--gpu-memory-utilization where nobody sets it: 0.90, and 0.92 from 0.22 on (`CacheConfig`)."""
    return 0.92 if version >= (0, 22) else 0.9


def _large(gpu: str, memory: int) -> bool:
    return memory >= _LARGE_GPU and "a100" not in gpu.lower()


def _sequences(version: Version, v1: bool, gpu: str, memory: int) -> int:
    """`default_max_num_seqs` of arg_utils.py: V0's 256; V1's 1024 on large GPUs."""
    return 1024 if v1 and _large(gpu, memory) else 256


def _step_tokens(version: Version, v1: bool, chunked: bool, length: int, gpu: str, memory: int, images: bool) -> int:
    """`max_num_batched_tokens` of the API server (arg_utils.py, config.py).

    V0 takes whole prompts unless it divides them: then 512 tokens a step, 2048 from 0.6.5 on (PR 10666).
    """
    if v1:
        return 8192 if _large(gpu, memory) else 2048
    if chunked:
        return 2048 if version >= (0, 6, 5) else 512
    return max(length, 5120 if images and version >= (0, 6, 3) else 2048)


def _whole_prompts(model: KnownModel, version: Version) -> bool:
    """Whether V0 refuses to divide prompts: with images, and over latents (config.py of 0.7)."""
    return bool(model.other_parameters) or keeps_latents(model, version)


def keeps_latents(model: KnownModel, version: Version) -> bool:
    """Whether this version caches latents: from 0.7.1 on (PR 12601); before, keys and values of all heads."""
    return version >= (0, 7, 1) and any(layer.keeps is Keeps.LATENT for layer in model.facts.layers)


def _block_size(model: KnownModel, version: Version) -> int:
    return 64 if keeps_latents(model, version) and version >= (0, 8) else 16


def _dtype(facts: ModelFacts) -> str:
    return "bfloat16" if facts.native_dtype not in ("bfloat16", "float16") else facts.native_dtype
