"""The Triton kernel under the interpreter against the reference, beyond the kinds of attention that conformance covers.

Tiny shapes: the interpreter takes milliseconds for what a GPU does in nanoseconds.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvcache.attention.kernel import AttentionShape
from kvcache.attention.reference import ReferenceKernel
from quant.kv_format import KVFormat, KVFormats, parse_kv_formats
from tests.fakes.attention_case import AttentionCase
from tests.fakes.interpreted import FilledByReference, interpreted_kernel

CPU = torch.device("cpu")
MIXED = ((0, 9), (40, 1), (13, 12))


def shape_of(
    heads: tuple[int, int, int, int],
    formats: str = "int8",
    dtype: torch.dtype = torch.float32,
    page_tokens: int = 16,
    window: int | None = None,
    *,
    chunked: bool = False,
    latent: bool = False,
) -> AttentionShape:
    return AttentionShape(*heads, page_tokens, window, dtype, CPU, chunked, latent, parse_kv_formats(formats))


def compare(case: AttentionCase, capability: tuple[int, int] = (9, 0), processors: int = 2) -> None:
    kernel = interpreted_kernel(capability, processors)
    assert kernel.supports(case.shape)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[case.shape.dtype]
    found, wanted = case.run(FilledByReference(kernel)), case.run(ReferenceKernel())
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "heads",
    [(2, 2, 64, 64), (3, 1, 80, 80), (4, 4, 96, 96), (4, 2, 192, 128), (2, 1, 256, 256), (2, 2, 24, 40), (6, 2, 8, 8)],
)
def test_head_sizes(heads: tuple[int, int, int, int]) -> None:
    """Whole powers of two, sums of two, keys and values of different size, and less than a product's least."""
    compare(AttentionCase(shape_of(heads), ((20, 1), (3, 7))))


@pytest.mark.parametrize("heads", [(20, 1, 16, 16), (40, 1, 16, 16), (7, 7, 16, 16)])
def test_groups_wider_than_a_tile_and_of_one(heads: tuple[int, int, int, int]) -> None:
    compare(AttentionCase(shape_of(heads), ((20, 1), (3, 7))))


@pytest.mark.parametrize(("page_tokens", "formats"), [(1, "model"), (4, "k=fp8"), (64, "k=fp8"), (256, "k=fp8")])
def test_page_sizes(page_tokens: int, formats: str) -> None:
    """Pages below and above a block of positions."""
    compare(AttentionCase(shape_of((2, 1, 16, 16), formats, page_tokens=page_tokens), MIXED))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("formats", ["model", "fp8", "int8"])
def test_types_of_models(formats: str, dtype: torch.dtype) -> None:
    compare(AttentionCase(shape_of((4, 2, 32, 32), formats, dtype), MIXED))


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0)])
def test_architectures_with_and_without_fp8(capability: tuple[int, int]) -> None:
    compare(AttentionCase(shape_of((4, 2, 32, 32), "fp8"), MIXED), capability)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_long_contexts_are_split_and_merged(latent: bool, sinks: bool) -> None:
    """Contexts of very different length in one step: some splits of the shorter ones are empty."""
    heads = (4, 1, 24, 16) if latent else (4, 2, 16, 16)
    compare(
        AttentionCase(shape_of(heads, "fp8", latent=latent), ((700, 1), (0, 1), (129, 3)), sinks=sinks), processors=8
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_a_window_over_a_long_context(chunked: bool) -> None:
    """Edges on both sides of the blocks that every row sees; the pages before are not in the table."""
    for window in (1, 7, 150):
        compare(AttentionCase(shape_of((2, 1, 16, 16), window=window, chunked=chunked), ((330, 1), (200, 70), (0, 9))))


def test_long_prompts_beside_decoding_sequences_of_every_short_length() -> None:
    """With groups of 4, up to 4 tokens are one tile of decode; 5 are a prompt."""
    compare(AttentionCase(shape_of((4, 1, 16, 16)), ((3, 5), (9, 4), (0, 80), (30, 1), (0, 1), (17, 33)), softcap=3.0))


# The interpreter computes with numpy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_infinite_key_shows_in_what_sees_it_and_nowhere_else() -> None:
    """Fault isolation: another sequence's answers must not change."""
    shape = shape_of((2, 1, 16, 16), "int8")
    clean = AttentionCase(shape, ((30, 1), (20, 1)))
    found = clean.run(FilledByReference(_Poisoning(0)))
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], clean.run(ReferenceKernel())[1], rtol=1e-5, atol=1e-5)


class _Poisoning:
    """A kernel whose queries stay, and whose first sequence writes an infinite key."""

    def __init__(self, row: int) -> None:
        self._kernel, self._row = interpreted_kernel(), row
        self.name, self.order = self._kernel.name, self._kernel.order
        self.supports, self.prepare, self.attend = self._kernel.supports, self._kernel.prepare, self._kernel.attend

    def write(self, key, value, pages, prepared) -> None:
        broken = key.clone()
        broken[self._row, :, 0] = float("inf")
        self._kernel.write(broken, value, pages, prepared)


def test_shapes_that_are_left_to_the_reference() -> None:
    kernel = interpreted_kernel()
    good = shape_of((4, 2, 64, 64))
    assert kernel.supports(good)
    strange = KVFormats(KVFormat("strange", 1, 2))
    for other in (
        {"key_size": 320},
        {"kv_heads": 3},
        {"page_tokens": 24},
        {"dtype": torch.float64},
        {"formats": strange},
        {"device": torch.device("cuda")},
        {"latent": True, "key_size": 640},
    ):
        assert not kernel.supports(replace(good, **other))
    assert not interpreted_kernel((7, 5)).supports(good)
