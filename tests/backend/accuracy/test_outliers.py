"""The probe catches outliers in K, on the real model: a per-tensor FP8 fails, ours degrades as measured.

A rotary pair of K channels is multiplied by s, and the matching channels of Q by 1 / s: scores, and so the function in
float32, stay as they were, while a format must now hold values s times as large beside the ordinary ones. Models have
such channels by themselves (Qwen2 for one).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from backend.accuracy.automatic import candidates, own
from backend.accuracy.choose import choose
from backend.accuracy.measure import Candidate, Limits, measure
from backend.accuracy.report import ContextAccuracy, FormatAccuracy
from backend.accuracy.text import text_tokens
from backend.library.files import ModelFiles
from backend.planner.kv_choice import KVChoice
from backend.surgery.linears import Part, ServedLinear, served_linears
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from kvcache.attention.reference import ReferenceKernel
from quant.kv.table import CODECS
from quant.kv_format import FP8, KVFormats

TOKENS = 128
LAYERS, KV_HEADS, PAIRS = (1, 8, 12, 18, 25), (0, 2), (3, 17)
REFERENCE = (ReferenceKernel(),)


class PerTensorFp8:
    """e4m3 with one static scale of 1.0, as engines use it that do not calibrate; what is too large saturates."""

    def dtype(self, model: torch.dtype) -> torch.dtype:
        return torch.float8_e4m3fn

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x.float().clamp(-448.0, 448.0).to(torch.float8_e4m3fn), None

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        return stored.float()


PER_TENSOR = (ReferenceKernel(MappingProxyType({**CODECS, FP8.name: PerTensorFp8()})),)


@pytest.fixture(scope="module")
def model(starter: ModelFiles) -> ServedModel:
    return load_model(starter, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)


@pytest.fixture(scope="module")
def text(starter: ModelFiles) -> list[int]:
    return text_tokens(starter, TOKENS + 1)


@contextmanager
def outliers(model: ServedModel, factor: float) -> Iterator[None]:
    """Makes the chosen pairs of K channels `factor` times as large; powers of two, so that it can be taken back."""
    _scale(model, factor)
    try:
        yield
    finally:
        _scale(model, 1 / factor)


@torch.no_grad()
def _scale(model: ServedModel, factor: float) -> None:
    parts = {part.name: (linear, part) for _, linear in served_linears(model.module) for part in linear.parts}
    heads = model.facts.heads[0] // model.facts.layers[0].kv_heads
    size = model.facts.layers[0].key_size
    for layer in LAYERS:
        for kv_head in KV_HEADS:
            rows = [pair + half for pair in PAIRS for half in (0, size // 2)]
            _multiply(*parts[f"model.layers.{layer}.self_attn.k_proj"], [kv_head * size + row for row in rows], factor)
            queries = [head * size + row for head in range(kv_head * heads, (kv_head + 1) * heads) for row in rows]
            _multiply(*parts[f"model.layers.{layer}.self_attn.q_proj"], queries, 1 / factor)


def _multiply(linear: ServedLinear, part: Part, rows: list[int], factor: float) -> None:
    linear.weight[[part.start + row for row in rows]] *= factor


def figures(model: ServedModel, text: list[int], *others: Candidate) -> list[FormatAccuracy]:
    (context,) = measure(model, text, own(REFERENCE), others, Limits(TOKENS), lambda done, total: None)
    return list(context.formats)


def test_the_probe_catches_outliers_in_k(model: ServedModel, text: list[int]) -> None:
    """INT8 per token and head passes until outliers take its levels; then auto leaves K alone. FP8 per token and head
    keeps its exponents and hardly moves; per tensor it saturates. (Of so small a model, FP8's three bits of mantissa
    move more than passes even without outliers.)"""
    per_tensor = Candidate(KVFormats(FP8, FP8), PER_TENSOR)
    fp8, int8, alone = candidates(("fp8", "int8", "k=model,v=int8"), REFERENCE)
    own_plain, static_plain, fp8_plain, int8_plain = figures(model, text, per_tensor, fp8, int8)
    with outliers(model, 64.0):
        own_some, int8_some = figures(model, text, int8)
    with outliers(model, 512.0):
        own_many, static_many, fp8_many, int8_many, alone_many = figures(model, text, per_tensor, fp8, int8, alone)
    # The function is the same: powers of two round nothing away.
    assert own_some.perplexity == pytest.approx(own_plain.perplexity, rel=1e-5)
    assert own_many.perplexity == pytest.approx(own_plain.perplexity, rel=1e-5)
    # Per tensor fails, further the larger the outliers, where the same type per token and head stays as it was.
    assert not static_many.passes
    assert static_many.divergence > 2 * max(static_plain.divergence, fp8_many.divergence)
    assert fp8_many.divergence < 2 * fp8_plain.divergence
    # INT8 is caught, and its figures say by how much.
    assert int8_plain.passes
    assert int8_plain.divergence < int8_some.divergence < int8_many.divergence
    assert not int8_some.passes
    assert str(_chosen(fp8_plain, int8_plain).formats) == "int8"
    fallen_back = _chosen(fp8_many, int8_many, alone_many)
    assert str(fallen_back.formats) == "k=model,v=int8"
    assert "K as it is" in fallen_back.reason


def _chosen(*formats: FormatAccuracy) -> KVChoice:
    return choose([ContextAccuracy(tokens=TOKENS, generated=0, formats=formats)])
