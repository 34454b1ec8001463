"""The Triton kernel on a CUDA device against the reference on the processor: what the interpreter cannot show.

Products in bfloat16, conversions by the hardware, real block sizes, and that nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvcache.attention.kernel import AttentionKernel, AttentionShape
from kvcache.attention.reference import ReferenceKernel
from kvcache.attention.table import attention_kernels
from quant.kv.table import CODECS
from quant.kv_format import parse_kv_formats
from tests.fakes.attention_case import AttentionCase

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MIXED = (((0, 300), (1000, 1), (77, 5), (2000, 130)), None, False)
CAPPED = (((0, 1), (5000, 1), (700, 64)), 20.0, True)
Steps = tuple[tuple[tuple[int, int], ...], float | None, bool]


@pytest.fixture
def kernel() -> AttentionKernel:
    found = attention_kernels(None)[0]
    assert found.name == "triton", "on this device nothing but the reference is served"
    return found


def shape_of(
    heads: tuple[int, int, int, int],
    formats: str,
    dtype: torch.dtype,
    window: int | None = None,
    *,
    page_tokens: int = 16,
    chunked: bool = False,
    latent: bool = False,
) -> AttentionShape:
    cuda = torch.device("cuda")
    return AttentionShape(*heads, page_tokens, window, dtype, cuda, chunked, latent, parse_kv_formats(formats))


def compare(kernel: AttentionKernel, shape: AttentionShape, steps: Steps) -> None:
    assert kernel.supports(shape)
    found = AttentionCase(shape, *steps).run(kernel)
    wanted = AttentionCase(replace(shape, device=torch.device("cpu")), *steps).run(ReferenceKernel())
    tolerance = TOLERANCES[shape.dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


every_format = pytest.mark.parametrize("formats", ["model", "fp8", "int8", "k=int8,v=fp8"])
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@every_type
@every_format
@pytest.mark.parametrize("heads", [(32, 8, 64, 64), (8, 8, 80, 80), (12, 4, 96, 96), (32, 8, 128, 128),
                                   (16, 4, 192, 128), (8, 4, 256, 256)])  # fmt: skip
def test_head_sizes(
    kernel: AttentionKernel, heads: tuple[int, int, int, int], formats: str, dtype: torch.dtype
) -> None:
    for steps in (MIXED, CAPPED):
        compare(kernel, shape_of(heads, formats, dtype), steps)


@every_format
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("page_tokens", [16, 256])
def test_windows_and_page_sizes(kernel: AttentionKernel, page_tokens: int, chunked: bool, formats: str) -> None:
    for window in (100, 1024):
        shape = shape_of((16, 4, 128, 128), formats, torch.bfloat16, window, page_tokens=page_tokens, chunked=chunked)
        compare(kernel, shape, MIXED)


@every_type
@pytest.mark.parametrize("formats", ["model", "fp8", "int8"])
@pytest.mark.parametrize("heads", [16, 128])
def test_latents(kernel: AttentionKernel, heads: int, formats: str, dtype: torch.dtype) -> None:
    compare(kernel, shape_of((heads, 1, 576, 512), f"k={formats}", dtype, latent=True), MIXED)


@every_type
@pytest.mark.parametrize("formats", ["fp8", "int8"])
def test_what_is_written_equals_the_codecs(kernel: AttentionKernel, formats: str, dtype: torch.dtype) -> None:
    """Bit for bit, also for tiny and huge rows; the codec runs on the processor, where division is exact."""
    shape = shape_of((8, 8, 128, 128), formats, dtype)
    case = AttentionCase(shape, ((0, 64),))
    pages = case.fresh_pages(5)
    x = torch.randn(64, 8, 128) * torch.linspace(-20, 12, 64).exp2()[:, None, None]
    x = x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    step = case.step([(0, 64)], torch.arange(4, dtype=torch.int32)[None])
    kernel.write(x.cuda(), x.cuda(), pages, kernel.prepare(step, shape))
    elements, scales = CODECS[formats].encode(x)
    assert scales is not None
    assert pages.key_scales is not None
    found = pages.keys[:4].transpose(1, 2).flatten(0, 1)
    assert torch.equal(found.cpu().view(torch.uint8), elements.view(torch.uint8))
    assert torch.equal(pages.key_scales[:4].transpose(1, 2).flatten(0, 1).cpu(), scales)


def test_a_step_never_waits_for_the_device(kernel: AttentionKernel) -> None:
    """torch raises on any synchronization in here; and the same step can be captured and replayed."""
    shape = shape_of((32, 8, 128, 128), "fp8", torch.bfloat16)
    case = AttentionCase(shape, ((0, 1), (4000, 1)))
    pages = case.fresh_pages(600)
    tables = torch.arange(502, dtype=torch.int32).view(2, 251)
    step = case.step([(0, 1), (4000, 4001)], tables)
    key, value = (torch.randn(2, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(2, 32, 128, device="cuda", dtype=torch.bfloat16)

    def run() -> torch.Tensor:
        kernel.write(key, value, pages, prepared)
        return kernel.attend(query, pages, prepared, scaling=0.1)

    pages.keys.view(torch.uint8).zero_()
    pages.values.view(torch.uint8).zero_() if pages.values is not None else None
    for scales in (pages.key_scales, pages.value_scales):
        assert scales is not None
        scales.fill_(1)
    prepared = kernel.prepare(step, shape)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared = kernel.prepare(step, shape)
        wanted = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    assert torch.equal(captured, wanted)
