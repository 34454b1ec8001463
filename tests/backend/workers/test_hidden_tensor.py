"""Hidden states come out of bytes as they went in, in every dtype, from any view."""

from __future__ import annotations

import pytest
import torch

from backend.workers.hidden_tensor import to_bytes, to_tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_hold_what_the_tensor_held_when_they_were_made(dtype: torch.dtype) -> None:
    memory = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    memory[0, 0] = -0.0
    view = memory[1:4, :6]
    before = view.clone()
    hidden = to_bytes(view)
    view.zero_()
    assert (hidden.rows, hidden.columns, len(hidden.data)) == (3, 6, hidden.nbytes)
    after = to_tensor(hidden, dtype, 3, 6)
    assert torch.equal(after, before)
    after.zero_()  # a copy of its own
    assert torch.equal(to_tensor(hidden, dtype, 3, 6), before)


def test_another_form_than_expected_is_refused() -> None:
    hidden = to_bytes(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="should be"):
        to_tensor(hidden, torch.float32, 4, 2)
    with pytest.raises(ValueError, match="should be"):
        to_tensor(hidden, torch.float16, 2, 8)
