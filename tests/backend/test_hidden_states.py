"""HiddenStates are taken only in the shape that a stage expects, and complete."""

from __future__ import annotations

import pytest

from backend.hidden_states import DTYPE_BYTES, HiddenStates


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_complete_hidden_states_pass(dtype: str) -> None:
    data = bytes(2 * 3 * DTYPE_BYTES[dtype])
    HiddenStates(dtype, 2, 3, data).check(dtype, 2, 3)
    HiddenStates(dtype, 2, 3, memoryview(data)).check(dtype, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        HiddenStates("float32", 2, 3, bytes(23)),
        HiddenStates("float32", 2, 3, memoryview(bytes(28))),
        HiddenStates("float32", 3, 2, bytes(24)),
        HiddenStates("bfloat16", 2, 3, bytes(12)),
        HiddenStates("float64", 2, 3, bytes(48)),
    ],
)
def test_anything_else_is_refused(wrong: HiddenStates) -> None:
    with pytest.raises(ValueError, match="hidden states"):
        wrong.check("float32", 2, 3)
