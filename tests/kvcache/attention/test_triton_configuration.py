"""Block sizes as data: every architecture, step, size and element has a line, and lines are what kernels can take."""

from __future__ import annotations

import itertools

import pytest

from kvcache.attention.triton_configuration import configuration_of

ARCHITECTURES, STEPS, BYTES = ("sm_90", "sm_89", "sm_80", "sm_120"), ("decode", "prefill"), (1, 2, 4)


@pytest.mark.parametrize(("architecture", "step", "element_bytes"), [*itertools.product(ARCHITECTURES, STEPS, BYTES)])
def test_every_shape_has_a_configuration(architecture: str, step: str, element_bytes: int) -> None:
    for size, latent in ((16, False), (64, False), (80, False), (128, False), (192, False), (256, False), (576, True)):
        found = configuration_of(architecture, step, size, latent, element_bytes)
        for number in (found.rows, found.positions):
            assert number >= 16
            assert number & (number - 1) == 0
        assert found.warps in (4, 8)
        assert found.stages >= 1
        assert found.programs >= 1


def test_hopper_differs_from_what_is_not_listed() -> None:
    assert configuration_of("sm_90", "decode", 128, False, 2) != configuration_of("sm_75", "decode", 128, False, 2)
    assert configuration_of("sm_86", "decode", 128, False, 2) == configuration_of("sm_80", "decode", 128, False, 2)


def test_a_size_past_the_table_is_refused_with_the_largest() -> None:
    with pytest.raises(ValueError, match="320 elements; the largest has 256"):
        configuration_of("sm_90", "decode", 320, False, 2)
