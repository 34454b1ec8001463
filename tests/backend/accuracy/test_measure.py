"""The probe on tiny random models: its figures are those of a plain computation, and what is broken is caught."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backend.accuracy.automatic import candidates, own
from backend.accuracy.measure import Candidate, Limits, measure
from backend.accuracy.report import ContextAccuracy, FormatAccuracy
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from kvcache.attention.reference import ReferenceKernel
from kvcache.attention.table import attention_kernels
from quant.cpu.team import Team
from quant.kv.codec import KVCodec
from quant.kv.fp8 import Fp8Codec
from quant.kv.int8 import Int8Codec
from quant.kv.table import CODECS
from quant.kv_format import FP8, INT8, KVFormats
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.tiny_models import make_checkpoint, reference_model

REFERENCE = (ReferenceKernel(),)
TEXT = torch.randint(1, 128, (200,), generator=torch.Generator().manual_seed(5)).tolist()


class BrokenCodec(Int8Codec):
    """Loses the sign of what it stores."""

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        return super().decode(stored, scales).abs()


class PoisonousCodec(Fp8Codec):
    """Answers with what is no number."""

    def decode(self, stored: Tensor, scales: Tensor | None) -> Tensor:
        return super().decode(stored, scales) * torch.nan


def with_codec(name: str, codec: KVCodec) -> tuple[ReferenceKernel, ...]:
    table: Mapping[str, KVCodec] = MappingProxyType({**CODECS, name: codec})
    return (ReferenceKernel(table),)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return tiny("llama", tmp_path_factory)


def tiny(family: str, folders: pytest.TempPathFactory) -> ServedModel:
    files = make_checkpoint(family, folders.mktemp(family))
    return load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)


def measured(model: ServedModel, *others: Candidate, limits: Limits | None = None) -> tuple[ContextAccuracy, ...]:
    return measure(model, TEXT, own(REFERENCE), others, limits or Limits(150, greedy=8), lambda done, total: None)


def only(contexts: tuple[ContextAccuracy, ...]) -> tuple[FormatAccuracy, ...]:
    assert len(contexts) == 1
    return contexts[0].formats


def test_identical_formats_do_not_differ(llama: ServedModel) -> None:
    contexts = measured(llama, own(REFERENCE))
    first, second = only(contexts)
    assert (contexts[0].tokens, contexts[0].generated) == (150, 8)
    assert first == second
    assert (second.change, second.divergence, second.first_difference) == (0.0, 0.0, None)


def test_perplexity_is_transformers_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint("llama", tmp_path_factory.mktemp("plain"))
    with torch.no_grad():
        logits = reference_model(files)(torch.tensor([TEXT[:150]])).logits[0]
    expected = math.exp(functional.cross_entropy(logits, torch.tensor(TEXT[1:151])))
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    assert only(measured(model))[0].perplexity == pytest.approx(expected, rel=1e-4)


def test_quantized_formats_are_near_and_their_bytes_told(llama: ServedModel) -> None:
    model, fp8, int8, alone = only(measured(llama, *candidates(("fp8", "int8", "k=model,v=int8"), REFERENCE)))
    assert 0 < int8.divergence < fp8.divergence < 0.05
    assert alone.divergence < int8.divergence
    assert (model.token_bytes, int8.token_bytes) == (3 * 2 * 2 * 16 * 4, 3 * 2 * 2 * (16 + 2))
    assert [one.kv_format for one in (model, fp8, int8, alone)] == ["model", "fp8", "int8", "k=model,v=int8"]


def test_a_broken_codec_is_caught(llama: ServedModel) -> None:
    broken = Candidate(KVFormats(INT8, INT8), with_codec("int8", BrokenCodec()))
    found = only(measured(llama, broken))[1]
    assert not found.passes
    assert found.divergence > 0.1
    assert found.first_difference is not None


def test_what_is_no_number_is_caught(llama: ServedModel) -> None:
    found = only(measured(llama, Candidate(KVFormats(FP8, FP8), with_codec("fp8", PoisonousCodec()))))[1]
    assert not found.passes
    assert found.divergence == math.inf


@pytest.mark.parametrize("family", ["mistral", "gemma2", "deepseek-v3", "phi3-longrope"])
def test_blocks_of_any_size_bring_the_same(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Windows, several groups, latents, and rotations by length: a text in slices is the same text."""
    model = tiny(family, tmp_path_factory)
    whole = only(measured(model, *candidates(("int8",), REFERENCE)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.accuracy.measure._BLOCK", 16)
        pieces = only(measured(model, *candidates(("int8",), REFERENCE)))
    for one, other in zip(whole, pieces, strict=True):
        assert other.perplexity == pytest.approx(one.perplexity, rel=1e-3)
        assert other.first_difference == one.first_difference


def test_the_first_stop_is_measured_apart_from_the_longest(llama: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was generated at the first stop leaves no trace in what is measured later."""
    monkeypatch.setattr("backend.accuracy.measure.FIRST_STOP", 64)
    stopped = measured(llama, *candidates(("int8",), REFERENCE))
    assert [context.tokens for context in stopped] == [64, 150]
    monkeypatch.undo()
    through = only(measured(llama, *candidates(("int8",), REFERENCE)))
    for one, other in zip(stopped[1].formats, through, strict=True):
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-4)
        assert one.divergence == pytest.approx(other.divergence, rel=0.02)


def test_no_time_brings_the_least_that_says_something(llama: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.accuracy.measure._BLOCK", 32)
    contexts = measured(llama, limits=Limits(190, greedy=8, seconds=0.0))
    assert [(context.tokens, context.generated) for context in contexts] == [(128, 1)]


def test_the_kernels_that_serve_are_measured(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With packed weights and the processor's kernels, the figures are the reference's."""
    plain = only(measured(tiny("llama-wide", tmp_path_factory), *candidates(("int8",), REFERENCE)))
    team = Team(1)
    model = pack_model(tiny("llama-wide", tmp_path_factory), WEIGHT_FORMATS["model"], team)
    kernels = attention_kernels(team)
    limits = Limits(150, greedy=8)
    served = only(measure(model, TEXT, own(kernels), candidates(("int8",), kernels), limits, lambda done, total: None))
    team.close()
    for one, other in zip(served, plain, strict=True):
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-2)
        assert one.divergence == pytest.approx(other.divergence, rel=0.2, abs=1e-6)


def test_progress_grows_to_its_total(llama: ServedModel) -> None:
    told: list[tuple[int, int]] = []
    measure(llama, TEXT, own(REFERENCE), (), Limits(150), lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[0] == (0, 150)
    assert told[-1] == (150, 150)


def test_a_text_without_a_next_token_is_refused(llama: ServedModel) -> None:
    with pytest.raises(ValueError, match="no next token"):
        measure(llama, [5], own(REFERENCE), (), Limits(), lambda done, total: None)
