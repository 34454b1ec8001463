"""rope_class: one class for all whose keys agree, another for each that has keys of its own."""

from __future__ import annotations

from backend.rope_class import rope_class


def test_without_variants_all_sequences_agree():
    assert rope_class(5, 9, (), None) == rope_class(5000, 9000, (), None)


def test_longrope_has_a_class_a_regime():
    assert rope_class(5, 10, (10, 20), None) == rope_class(9, 9, (10, 20), None)
    assert len({rope_class(5, length, (10, 20), None) for length in (10, 11, 20, 21)}) == 3


def test_dynamic_ntk_has_a_class_for_each_longer_prompt():
    assert rope_class(5, 30, (), 10) == rope_class(10, 11, (), 10)
    assert rope_class(11, 30, (), 10) == rope_class(11, 12, (), 10)
    assert len({rope_class(prompt, 30, (), 10) for prompt in (10, 11, 12)}) == 3
