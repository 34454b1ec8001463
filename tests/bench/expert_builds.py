"""Compiles the Triton expert kernels for GPUs that are not here: each configuration, layout and type.

Not a test and not a benchmark by itself: `python -m tests.bench.experts --compile` and the tests use it. It must run in
a process where TRITON_INTERPRET is not set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.attention.triton_card import Card
from quant.triton.expert_configuration import ExpertConfiguration, expert_configuration, loads
from quant.triton.expert_gate import Gate
from quant.triton.expert_groups import empty_groups, group_arguments, group_kernel
from quant.triton.expert_products import down_kernel, sum_kernel, up_kernel
from quant.triton.expert_reference import ExpertMatrices
from quant.triton.experts import FusedExperts
from tests.bench.kernel_builds import CARDS, META, Build

TOKENS = 64
SILU = Gate("swish")


@dataclass(frozen=True)
class Mixture:
    """A layer's sizes, and where its matrices' columns lie. `gate` None: the product is stored as it is."""

    name: str
    experts: int
    active: int
    hidden: int
    inner: int
    gate: Gate | None = SILU
    transposed: bool = False
    biased: bool = False


QWEN3_30B = Mixture("qwen3-30b", 128, 8, 2048, 768)
GPT_OSS_20B = Mixture("gpt-oss-20b", 32, 4, 2880, 2880,
                      Gate("swish", interleaved=True, alpha=1.702, limit=7.0, offset=1.0), True, True)  # fmt: skip
MIXTURES = (
    QWEN3_30B, GPT_OSS_20B, Mixture("mixtral-8x7b, a third", 8, 2, 4096, 4800, Gate("gelu")),
    Mixture("own gate, odd", 5, 2, 1000, 100, None),
)  # fmt: skip


def all_builds() -> Iterator[Build]:
    """Every mixture in every type and at every load, on every card."""
    for card in CARDS:
        for mixture in MIXTURES:
            for dtype in (torch.bfloat16, torch.float32):
                for load in loads(card.architecture, dtype.itemsize):
                    yield from builds_of(card, mixture, dtype, load)


def few_builds() -> Iterator[Build]:
    """What a test run has time for: every kernel, both cards, both layouts of gates, decode and prefill."""
    hopper, ada = CARDS
    yield from builds_of(hopper, QWEN3_30B, torch.bfloat16, 1)
    yield from (b for b in builds_of(ada, GPT_OSS_20B, torch.float16, 1e9) if " group " not in b.name)
    yield from (b for b in builds_of(ada, MIXTURES[3], torch.float32, 1e9) if " up " in b.name)


def builds_of(card: Card, mixture: Mixture, dtype: torch.dtype, load: float) -> Iterator[Build]:
    """The four kernels of a layer."""
    used = expert_configuration(card.architecture, dtype.itemsize, load)
    run = FusedExperts(_matrices(mixture, dtype), mixture.gate, lambda x: x, 0, mixture.experts, card.architecture)
    index = torch.empty(TOKENS, mixture.active, dtype=torch.int64, device=META)
    groups = empty_groups(index, mixture.experts, used.rows)
    x = torch.empty(TOKENS, mixture.hidden, dtype=dtype, device=META)
    columns = run.matrices.up.shape[1] // (1 if mixture.gate is None else 2)
    inner, outputs = x.new_empty(index.numel(), columns), x.new_empty(index.numel(), mixture.hidden)
    weights = torch.empty(index.shape, dtype=torch.float32, device=META)
    label = f"{card.architecture} {mixture.name} {str(dtype)[6:]} rows {used.rows}"
    yield Build(f"{label} group ", group_kernel, group_arguments(index, groups, 0, mixture.experts, used.rows), 4, 3,
                card)  # fmt: skip
    yield _product(f"{label} up ", up_kernel, run.up_arguments(x, mixture.active, groups, inner, used), used, card)
    yield _product(f"{label} down ", down_kernel, run.down_arguments(inner, groups, weights, outputs, used), used, card)
    yield Build(f"{label} sum ", sum_kernel, run.sum_arguments(outputs, index, x), 4, 3, card)


def _product(name: str, kernel: object, arguments: dict[str, object], used: ExpertConfiguration, card: Card) -> Build:
    tile = used.up if kernel is up_kernel else used.down
    return Build(f"{name}{tile.columns} x {tile.depth}", kernel, arguments, tile.warps, tile.stages, card)


def _matrices(mixture: Mixture, dtype: torch.dtype) -> ExpertMatrices:
    def matrix(rows: int, columns: int) -> Tensor:
        if mixture.transposed:
            return torch.empty(mixture.experts, columns, rows, dtype=dtype, device=META).transpose(1, 2)
        return torch.empty(mixture.experts, rows, columns, dtype=dtype, device=META)

    columns = mixture.inner * (1 if mixture.gate is None else 2)
    up, down = matrix(columns, mixture.hidden), matrix(mixture.hidden, mixture.inner)
    if not mixture.biased:
        return ExpertMatrices(up, down)
    return ExpertMatrices(up, down, up.new_empty(mixture.experts, columns),
                          down.new_empty(mixture.experts, mixture.hidden))  # fmt: skip
