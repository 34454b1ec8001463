"""Every attention kernel against the reference, over shapes, page sizes, windows, softcaps, sinks and mixed steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.processor import ProcessorKernel
from kvcache.attention.reference import ReferenceKernel
from quant.cpu.team import Team
from tests.fakes.attention_case import AttentionCase

KERNELS: tuple[AttentionKernel, ...] = (ProcessorKernel(Team(2)),)
HEADS = [(9, 3, 64, 64), (4, 4, 16, 32), (8, 1, 80, 48), (14, 2, 256, 128)]
# (positions in the cache, new tokens) of each sequence; softcap; sinks
STEPS = (
    (((0, 1), (17, 1)), None, True),
    (((0, 17), (100, 1), (255, 1), (63, 70)), None, False),
    (((5, 1), (200, 40), (31, 33)), 5.0, True),
)


def shape_of(
    heads: tuple[int, int, int, int], page_tokens: int, window: int | None, dtype: torch.dtype
) -> AttentionShape:
    return AttentionShape(*heads, page_tokens, window, dtype, torch.device("cpu"))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page_tokens", [16, 128])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", HEADS)
def test_equals_the_reference(
    kernel: AttentionKernel, dtype: torch.dtype, page_tokens: int, window: int | None, heads: tuple[int, int, int, int]
) -> None:
    shape = shape_of(heads, page_tokens, window, dtype)
    assert kernel.supports(shape)
    for chunks, softcap, sinks in STEPS:
        case = AttentionCase(shape, chunks, softcap, sinks)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(case.run(kernel), case.run(ReferenceKernel()), rtol=tolerance, atol=tolerance)


def test_the_reference_equals_dense_attention() -> None:
    """One sequence in one chunk: the reference must be plain causal attention, which torch computes by itself."""
    shape = shape_of((6, 2, 32, 32), 16, None, torch.float32)
    case = AttentionCase(shape, ((0, 37),), seed=3)
    seen: list[torch.Tensor] = []

    class Spy(ReferenceKernel):
        def write(self, key, value, pages, prepared) -> None:
            assert value is not None
            seen.extend((key, value))
            super().write(key, value, pages, prepared)

        def attend(self, query, pages, prepared, **options):
            seen.append(query)
            return super().attend(query, pages, prepared, **options)

    found = case.run(Spy())
    key, value, query = (part.transpose(0, 1)[None] for part in seen)
    dense = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, dense[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_shapes_that_the_processor_kernel_leaves_to_the_reference() -> None:
    kernel = ProcessorKernel(Team(1))
    for heads, page_tokens in (((4, 4, 24, 32), 16), ((4, 3, 32, 32), 16), ((4, 4, 32, 32), 8)):
        assert not kernel.supports(shape_of(heads, page_tokens, None, torch.float32))
    assert not kernel.supports(shape_of((4, 4, 32, 32), 16, None, torch.float16))
