"""Every attention kernel against the reference, over formats, masks, page sizes, softcaps, sinks and mixed steps.

The grid is pairwise: each case below meets both types; every two of the values that shapes choose from meet somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.processor import ProcessorKernel
from kvcache.attention.reference import ReferenceKernel
from quant.cpu.team import Team
from quant.kv.table import CODECS
from quant.kv_format import KV_FORMATS, KVFormats, parse_kv_formats
from tests.fakes.attention_case import AttentionCase
from tests.fakes.interpreted import FilledByReference, interpreted_kernel

KERNELS: tuple[AttentionKernel, ...] = (ProcessorKernel(Team(2)),)
# heads, kv heads, key size, value size
NARROW, EVEN, ALONE, WIDE = (9, 3, 64, 64), (4, 4, 16, 32), (8, 1, 80, 48), (14, 2, 256, 128)
# (positions in the cache, new tokens) of each sequence; softcap; sinks
FEW = (((0, 1), (17, 1)), None, True)
MIXED = (((0, 17), (100, 1), (255, 1), (63, 70)), None, False)
CAPPED = (((5, 1), (200, 40), (31, 33)), 5.0, True)
STEPS = (FEW, MIXED, CAPPED)
Heads = tuple[int, int, int, int]


def shape_of(
    heads: Heads,
    page_tokens: int,
    window: int | None,
    dtype: torch.dtype,
    *,
    chunked: bool = False,
    latent: bool = False,
    formats: str = "model",
) -> AttentionShape:
    stored: KVFormats = parse_kv_formats(formats)
    return AttentionShape(*heads, page_tokens, window, dtype, torch.device("cpu"), chunked, latent, stored)


def assert_equals_the_reference(kernel: AttentionKernel, case: AttentionCase) -> None:
    assert kernel.supports(case.shape)
    tolerance = 2e-2 if case.shape.dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(case.run(kernel), case.run(ReferenceKernel()), rtol=tolerance, atol=tolerance)


both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


@every_kernel
@both_types
@pytest.mark.parametrize("page_tokens", [16, 128])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", [NARROW, EVEN, ALONE, WIDE])
def test_equals_the_reference(
    kernel: AttentionKernel, dtype: torch.dtype, page_tokens: int, window: int | None, heads: Heads
) -> None:
    shape = shape_of(heads, page_tokens, window, dtype)
    for chunks, softcap, sinks in STEPS:
        assert_equals_the_reference(kernel, AttentionCase(shape, chunks, softcap, sinks))


@every_kernel
@both_types
@pytest.mark.parametrize(
    ("formats", "heads", "page_tokens", "window", "chunked", "steps"),
    [
        ("int8", NARROW, 16, None, False, MIXED),
        ("int8", WIDE, 128, None, False, CAPPED),
        ("int8", ALONE, 16, 20, False, CAPPED),
        ("int8", EVEN, 64, 48, True, MIXED),
        ("fp8", WIDE, 16, None, False, CAPPED),
        ("fp8", NARROW, 128, 20, False, MIXED),
        ("fp8", EVEN, 16, None, False, FEW),
        ("fp8", ALONE, 128, 48, True, CAPPED),
        ("k=int8,v=fp8", ALONE, 32, None, False, MIXED),
        ("k=fp8,v=model", EVEN, 128, None, False, CAPPED),
        ("k=model,v=int8", WIDE, 16, 20, False, MIXED),
        ("k=model,v=fp8", NARROW, 64, 48, True, CAPPED),
        ("model", NARROW, 16, 48, True, MIXED),
        ("model", WIDE, 128, 48, True, CAPPED),
    ],
)
def test_formats_and_chunks_equal_the_reference(
    kernel: AttentionKernel,
    dtype: torch.dtype,
    formats: str,
    heads: Heads,
    page_tokens: int,
    window: int | None,
    chunked: bool,
    steps: tuple[tuple[tuple[int, int], ...], float | None, bool],
) -> None:
    shape = shape_of(heads, page_tokens, window, dtype, chunked=chunked, formats=formats)
    assert_equals_the_reference(kernel, AttentionCase(shape, *steps))


@every_kernel
@both_types
@pytest.mark.parametrize(
    ("formats", "heads", "page_tokens", "steps"),
    [
        ("model", (16, 1, 96, 64), 16, MIXED),
        ("model", (40, 1, 64, 48), 128, CAPPED),
        ("int8", (128, 1, 576, 512), 64, FEW),
        ("int8", (6, 1, 80, 80), 16, MIXED),
        ("fp8", (40, 1, 96, 64), 128, MIXED),
        ("fp8", (16, 1, 64, 16), 16, CAPPED),
    ],
)
def test_latents_equal_the_reference(
    kernel: AttentionKernel,
    dtype: torch.dtype,
    formats: str,
    heads: Heads,
    page_tokens: int,
    steps: tuple[tuple[tuple[int, int], ...], float | None, bool],
) -> None:
    shape = shape_of(heads, page_tokens, None, dtype, latent=True, formats=f"k={formats}")
    assert_equals_the_reference(kernel, AttentionCase(shape, *steps))


@every_kernel
@both_types
@pytest.mark.parametrize(
    ("formats", "heads", "page_tokens", "shared", "softcap", "sinks"),
    [
        ("model", NARROW, 16, 17, None, True),
        ("int8", NARROW, 128, 2, 5.0, False),
        ("k=fp8,v=model", (48, 1, 64, 32), 16, 16, None, True),
        ("int8", EVEN, 16, 16, 5.0, True),
        ("model", WIDE, 128, 2, None, False),
    ],
)
def test_sequences_that_share_a_prefix_equal_the_reference(
    kernel: AttentionKernel,
    dtype: torch.dtype,
    formats: str,
    heads: Heads,
    page_tokens: int,
    shared: int,
    softcap: float | None,
    sinks: bool,
) -> None:
    known = shared * page_tokens
    chunks = ((known, 1), (known + 33, 1), (known + 2, 3), (known, 1), (known + 1, 50), (known + 70, 1))
    shape = shape_of(heads, page_tokens, None, dtype, formats=formats)
    assert_equals_the_reference(kernel, AttentionCase(shape, chunks, softcap, sinks, shared=shared))


@every_kernel
@both_types
@pytest.mark.parametrize(
    ("formats", "heads", "page_tokens", "softcap", "sinks"),
    [
        ("model", NARROW, 16, None, True),
        ("int8", ALONE, 128, 5.0, True),
        ("fp8", EVEN, 64, None, False),
    ],
)
def test_long_contexts_equal_the_reference(
    kernel: AttentionKernel,
    dtype: torch.dtype,
    formats: str,
    heads: Heads,
    page_tokens: int,
    softcap: float | None,
    sinks: bool,
) -> None:
    shape = shape_of(heads, page_tokens, None, dtype, formats=formats)
    for chunks in (((2100, 1),), ((1500, 1), (3, 2), (30, 1))):
        assert_equals_the_reference(kernel, AttentionCase(shape, chunks, softcap, sinks))


@dataclass(frozen=True)
class Kind:
    """What a layer may be asked for beside plain causal attention."""

    window: int | None = None
    chunked: bool = False
    softcap: float | None = None
    sinks: bool = False
    latent: bool = False


KINDS = {
    "full": Kind(),
    "sliding": Kind(window=20),
    "chunked": Kind(window=20, chunked=True),
    "softcap": Kind(softcap=2.0),
    "sinks": Kind(sinks=True),
    "latent": Kind(latent=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
every_format = pytest.mark.parametrize("formats", [*KV_FORMATS, "k=int8,v=fp8", "k=fp8,v=model"])


@pytest.mark.parametrize("which", ["processor", "triton"])
@every_format
@every_kind
def test_every_kernel_serves_every_format_and_kind(which: str, formats: str, kind: Kind) -> None:
    """The whole grid, small: the Triton kernel runs under its interpreter."""
    heads = (4, 1, 48, 32) if kind.latent else (4, 2, 32, 16)
    shape = shape_of(
        heads, 16, kind.window, torch.float32, chunked=kind.chunked, latent=kind.latent, formats=formats
    )  # fmt: skip
    case = AttentionCase(shape, ((0, 9), (70, 1), (33, 12)), kind.softcap, kind.sinks)
    kernel = ProcessorKernel(Team(2)) if which == "processor" else FilledByReference(interpreted_kernel())
    assert_equals_the_reference(kernel, case)


class Recording(ReferenceKernel):
    """The reference, which remembers the K, V and query of its last step as they came."""

    def write(self, key, value, pages, prepared) -> None:
        self.key, self.value = key, value
        super().write(key, value, pages, prepared)

    def attend(self, query, pages, prepared, **options):
        self.query, self.sinks = query, options["sinks"]
        return super().attend(query, pages, prepared, **options)


@every_format
@every_kind
def test_the_reference_equals_dense_attention(formats: str, kind: Kind) -> None:
    """One sequence in one chunk, on K and V that went through their codecs: plain products under a plain mask."""
    heads = (6, 2, 40, 32) if kind.latent else (6, 2, 32, 32)
    shape = shape_of(
        heads, 16, kind.window, torch.float32, chunked=kind.chunked, latent=kind.latent, formats=formats
    )  # fmt: skip
    reference = Recording()
    found = AttentionCase(shape, ((0, 37),), kind.softcap, kind.sinks, seed=3).run(reference)
    key = stored(reference.key, shape.formats.key.name)
    value = key[:, :, :32] if reference.value is None else stored(reference.value, shape.formats.value.name)
    key, value = (x.repeat_interleave(3, 1).transpose(0, 1) for x in (key, value))
    scores = reference.query.transpose(0, 1) @ key.transpose(1, 2) * heads[2] ** -0.5
    if kind.softcap is not None:
        scores = kind.softcap * (scores / kind.softcap).tanh()
    at, seen = torch.arange(37)[:, None], torch.arange(37)[None, :]
    visible = seen <= at
    if kind.window is not None:
        visible &= seen // kind.window == at // kind.window if kind.chunked else at - seen < kind.window
    chances = scores.masked_fill(~visible, -torch.inf).exp()
    total = chances.sum(-1, keepdim=True)
    if kind.sinks:
        total += reference.sinks[:, None, None].exp()
    torch.testing.assert_close(found, (chances / total @ value).transpose(0, 1), rtol=1e-5, atol=1e-5)


def stored(x: torch.Tensor, name: str) -> torch.Tensor:
    """x as a page gives it back."""
    return CODECS[name].decode(*CODECS[name].encode(x))


def test_shapes_that_the_processor_kernel_leaves_to_the_reference() -> None:
    kernel = ProcessorKernel(Team(1))
    for heads, page_tokens in (((4, 4, 24, 32), 16), ((4, 3, 32, 32), 16), ((4, 4, 32, 32), 8)):
        assert not kernel.supports(shape_of(heads, page_tokens, None, torch.float32))
    assert not kernel.supports(shape_of((4, 4, 32, 32), 16, None, torch.float16))
