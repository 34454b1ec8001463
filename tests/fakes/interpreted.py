"""The Triton kernels under Triton's interpreter, on the processor; and how to spare it long contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor

from kvcache.attention.kernel import AttentionKernel, AttentionShape, GroupStep, LayerPages
from kvcache.attention.reference import ReferenceKernel

if TYPE_CHECKING:
    from kvcache.attention.triton_kernel import TritonKernel


def require_interpreter() -> None:
    """Skips the test, with the reason, where Triton cannot interpret."""
    triton: Any = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested here")
    if not triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET was not set before Triton was loaded: its kernels are not tested here")


def interpreted_kernel(capability: tuple[int, int] = (9, 0), processors: int = 2) -> TritonKernel:
    """As on a GPU of that capability; skips the test, with the reason, where Triton cannot interpret."""
    require_interpreter()
    from kvcache.attention.triton_card import Card
    from kvcache.attention.triton_kernel import TritonKernel

    return TritonKernel(Card("cpu", capability, processors, interpreted=True))


class FilledByReference:
    """The reference writes what an AttentionCase has in its cache before; `kernel` does the step that is compared.

    Both order their pages alike, so one must read what the other wrote. `fills`: how many steps come before.
    """

    def __init__(self, kernel: AttentionKernel, fills: int = 1) -> None:
        self.name, self.order = kernel.name, kernel.order
        self._kernels: list[AttentionKernel] = [ReferenceKernel()] * fills + [kernel]
        self._current: AttentionKernel = kernel

    def supports(self, shape: AttentionShape) -> bool:
        return self._kernels[-1].supports(shape)

    def prepare(self, step: GroupStep, shape: AttentionShape) -> Any:
        self._current = self._kernels.pop(0)
        return self._current.prepare(step, shape)

    def write(self, key: Tensor, value: Tensor | None, pages: LayerPages, prepared: Any) -> None:
        self._current.write(key, value, pages, prepared)

    def attend(self, query: Tensor, pages: LayerPages, prepared: Any, **options: Any) -> Tensor:
        return self._current.attend(query, pages, prepared, **options)
