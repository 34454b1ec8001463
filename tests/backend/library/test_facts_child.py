"""Facts of architectures of every sort, each against the model that transformers builds.

All of them: `python -m tests.fit.architectures`.
"""

from __future__ import annotations

import pytest

from tests.fit.architectures import answer, kinds


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "deepseek_v3", "gpt_oss", "got_ocr2"])
def test_what_is_served(kind: str) -> None:
    assert answer(kinds()[kind]).verdict == "served"


@pytest.mark.parametrize(
    ("kind", "attending", "states"),
    [
        ("qwen3_next", 1, 3),
        ("mamba", 0, 4),
        ("falcon_mamba", 0, 4),
        ("lfm2_moe", 2, 2),
        ("kimi_linear", 1, 3),
        ("recurrent_gemma", 1, 3),
        ("bert", 4, 0),
    ],
)
def test_what_is_refused_and_counted(kind: str, attending: int, states: int) -> None:
    found = answer(kinds()[kind])
    assert found.verdict == "outlined", found.why
    assert found.known is not None
    assert "not served" in found.why
    assert len(found.known.facts.layers) == attending
    assert sum(layers.count for layers in found.known.states) == states
    for layers in found.known.states:
        assert layers.bytes > 0
        assert 0 < layers.parameters < found.known.facts.parameters


def test_what_cannot_be_built_is_read_from_its_fields() -> None:
    found = answer(kinds()["reformer"])
    assert found.verdict == "by fields"
    assert found.known is not None
    assert len(found.known.facts.layers) == 4


def test_what_chooses_keys_is_counted_and_told_apart() -> None:
    found = answer(kinds()["glm_moe_dsa"])
    assert found.verdict == "served", found.why
    assert found.known is not None
    assert found.known.chosen is not None
    assert found.known.chosen < found.known.facts.max_positions
    assert 0 < found.known.chooser_parameters < found.known.facts.parameters
    assert found.known.facts.positions_reason == ""
