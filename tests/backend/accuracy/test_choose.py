"""What auto takes, from figures alone."""

from __future__ import annotations

import math

import pytest

from backend.accuracy.choose import choose, needs_values_only
from backend.accuracy.report import ContextAccuracy, FormatAccuracy


def figures(kv_format: str, divergence: float, change: float = 0.0) -> FormatAccuracy:
    return FormatAccuracy(kv_format=kv_format, token_bytes=1, perplexity=9.0, change=change, divergence=divergence)


def context(*formats: FormatAccuracy, tokens: int = 512) -> ContextAccuracy:
    return ContextAccuracy(tokens=tokens, generated=0, formats=(figures("model", 0.0), *formats))


def test_the_nearer_of_two_that_pass_is_taken_and_its_figures_told() -> None:
    choice = choose([context(figures("fp8", 9e-4), figures("int8", 4e-4, change=-0.001))])
    assert str(choice.formats) == "int8"
    assert choice.reason == (
        "K and V are stored as int8: over 512 tokens it changes perplexity by -0.10%, "
        "at a mean KL divergence of 4.0e-04."
    )


@pytest.mark.parametrize("spoilt", [figures("int8", 3e-3), figures("int8", 1e-4, change=0.006)])
def test_one_limit_passed_is_enough_to_fail(spoilt: FormatAccuracy) -> None:
    assert str(choose([context(spoilt, figures("fp8", 1.9e-3))]).formats) == "fp8"
    assert str(choose([context(figures("int8", 2e-3, change=0.005))]).formats) == "int8"  # the limits themselves pass
    assert str(choose([context(figures("int8", 1e-3, change=-0.006))]).formats) == "int8"


def test_where_neither_passes_v_alone_is_stored_in_the_nearer_one_that_passes() -> None:
    first = context(figures("fp8", 3e-3), figures("int8", 5e-2))
    assert needs_values_only([first])
    alone = context(figures("k=model,v=fp8", 9e-4), figures("k=model,v=int8", 2e-4))
    choice = choose([first, alone])
    assert str(choice.formats) == "k=model,v=int8"
    assert "while fp8 for both" in choice.reason
    assert "int8 for both" in choice.reason


def test_a_format_for_both_is_preferred_to_a_nearer_one_for_v_alone() -> None:
    measured = [context(figures("fp8", 1e-3), figures("k=model,v=int8", 1e-5))]
    assert not needs_values_only(measured)
    assert str(choose(measured).formats) == "fp8"


def test_where_nothing_passes_the_models_own_stays_and_the_nearest_is_named() -> None:
    names = ("fp8", "int8", "k=model,v=fp8", "k=model,v=int8")
    choice = choose([context(*(figures(name, 0.1 / place) for place, name in enumerate(names, 1)))])
    assert str(choice.formats) == "model"
    assert "nearest format, k=model,v=int8," in choice.reason
    assert "0.5% and 2e-03" in choice.reason
    assert "no other format was measured" in choose([]).reason


def test_a_format_must_pass_at_every_length() -> None:
    short = context(figures("int8", 1e-4), figures("fp8", 1e-3))
    long = context(figures("int8", 1e-4, change=0.02), figures("fp8", 1.5e-3), tokens=8000)
    choice = choose([short, long])
    assert str(choice.formats) == "fp8"
    assert "8,000 tokens" in choice.reason


@pytest.mark.parametrize("spoilt", [figures("int8", math.inf), figures("int8", math.nan), figures("int8", 0, math.nan)])
def test_figures_that_are_no_numbers_never_pass(spoilt: FormatAccuracy) -> None:
    assert not spoilt.passes
    assert str(choose([context(spoilt)]).formats) == "model"
