"""Compiles the Triton attention kernels for GPUs that are not here, and reads what the compiler made of them.

Not a test and not a benchmark by itself: `python -m tests.bench.kernels --compile` and the tests use it. It must run in
a process where TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvcache.attention.kernel import AttentionShape, GroupStep, LayerPages
from kvcache.attention.triton_attend import attend_kernel
from kvcache.attention.triton_card import Card
from kvcache.attention.triton_configuration import Configuration
from kvcache.attention.triton_kernel import TritonKernel
from kvcache.attention.triton_launch import attend_arguments, merge_arguments
from kvcache.attention.triton_merge import merge_kernel
from kvcache.attention.triton_parts import Part, parts_of
from kvcache.attention.triton_write import write_arguments, write_kernel
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.page_memory import PageMemory
from quant.kv_format import KVFormats, parse_kv_formats

META = torch.device("meta")
CARDS = (Card("meta", (9, 0), 132), Card("meta", (8, 9), 128))
# Shared memory that one program may have: CUDA C++ Programming Guide, "Compute capabilities".
SHARED_LIMITS = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448}


@dataclass(frozen=True)
class Build:
    """One kernel to compile: its arguments (tensors without memory) and the options of its launch."""

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    warps: int
    stages: int
    card: Card


@dataclass(frozen=True)
class Figures:
    """What a build takes: bytes of shared memory, registers and bytes of stack (spills) of a thread."""

    shared: int
    registers: int
    stack: int


def compile_for(build: Build) -> Figures:
    """Raises what Triton or ptxas raises where the kernel does not compile."""
    constants, signature, attributes = {}, {}, {}
    for index, parameter in enumerate(build.kernel.params):
        value = build.arguments[parameter.name]
        plain = parameter.do_not_specialize
        kind = None if parameter.is_constexpr else _type_of(value, plain)
        signature[parameter.name] = kind or "constexpr"
        if kind is None:
            constants[parameter.name] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not plain):
            # As a launch would find: allocations and most strides are multiples of 16.
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(build.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", build.card.capability[0] * 10 + build.card.capability[1], 32)
    made: Any = triton.compile(source, target, {"num_warps": build.warps, "num_stages": build.stages})
    return _figures(made.metadata.shared, made.asm["cubin"])


def _type_of(value: object, plain: bool) -> str | None:
    """As Triton's signatures write it; None for what a launch makes a constant, which `plain` numbers never are."""
    names = {
        torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8",
        torch.int32: "i32", torch.int64: "i64",
    }  # fmt: skip
    if isinstance(value, Tensor):
        return "*" + names[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value is None or (value == 1 and not plain):
        return None
    return "i32" if isinstance(value, int) and value < 2**31 else "i64"


def _figures(shared: int, cubin: bytes) -> Figures:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", text)}
    return Figures(shared, found["REG"], found["STACK"])


@dataclass(frozen=True)
class Model:
    """A layer's shape, and the layers of its group."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    latent: bool = False
    layers: int = 32


MODELS = (
    Model(32, 8, 64, 64), Model(32, 32, 80, 80), Model(32, 8, 128, 128), Model(16, 8, 192, 128), Model(8, 4, 256, 256),
    Model(128, 1, 576, 512, latent=True),
)  # fmt: skip
VARIANTS = (("model", torch.bfloat16), ("fp8", torch.bfloat16), ("int8", torch.bfloat16), ("model", torch.float32))


def shape_of(model: Model, formats: str, dtype: torch.dtype, window: int | None = None) -> AttentionShape:
    return AttentionShape(
        model.heads, model.kv_heads, model.key_size, model.value_size, 16, window, dtype, META, False, model.latent,
        parse_kv_formats(formats),
    )  # fmt: skip


def all_builds() -> Iterator[Build]:
    """Every model's sizes in every format on every card: writing, decode and prefill, and their merges."""
    for card in CARDS:
        for model in MODELS:
            for formats, dtype in VARIANTS:
                yield from builds_of(card, model, formats, dtype)


def few_builds() -> Iterator[Build]:
    """What a test run has time for: each format once, both cards, a window, and latents."""
    hopper, ada = CARDS
    chosen = (
        (hopper, MODELS[2], "fp8", torch.bfloat16, None, "decode"),
        (ada, MODELS[2], "int8", torch.float16, None, "decode"),
        (ada, MODELS[1], "model", torch.bfloat16, 1024, "prefill"),
        (hopper, MODELS[5], "model", torch.bfloat16, None, "decode"),
    )
    for card, model, formats, dtype, window, step in chosen:
        yield next(b for b in builds_of(card, model, formats, dtype, window) if f" {step} " in b.name)
    yield from (b for b in builds_of(hopper, MODELS[2], "fp8", torch.bfloat16) if " write " in b.name)


def builds_of(card: Card, model: Model, formats: str, dtype: torch.dtype, window: int | None = None) -> Iterator[Build]:
    shape = shape_of(model, formats, dtype, window)
    pages = _pages(model, dtype, shape.formats)
    kernel = TritonKernel(card)
    used = {step: kernel.configuration(step, shape) for step in ("decode", "prefill")}
    label = f"{card.architecture} {model.key_size}/{model.value_size} {formats} {str(dtype)[6:]}"
    key = torch.empty(64, shape.kv_heads, shape.key_size, dtype=dtype, device=META)
    value = None if model.latent else torch.empty(64, shape.kv_heads, shape.value_size, dtype=dtype, device=META)
    slots = torch.empty(64, dtype=torch.int64, device=META)
    arguments = write_arguments(key, value, pages, slots, 16, (shape.formats.key.name, shape.formats.value.name))
    yield Build(f"{label} write ", write_kernel, arguments, 4, 3, card)
    for step_name, tokens in (("decode", 1), ("prefill", 2048)):
        for part in parts_of(_step(tokens), shape, used["decode"], used["prefill"], card.processors):
            if part.long == (step_name == "prefill"):
                yield from _attend_builds(f"{label} {step_name} ", shape, pages, part, card, tokens)


def _attend_builds(
    name: str, shape: AttentionShape, pages: LayerPages, part: Part, card: Card, tokens: int
) -> Iterator[Build]:
    step = _step(tokens)
    query = torch.empty(tokens, shape.heads, shape.key_size, dtype=shape.dtype, device=META)
    out = torch.empty(tokens, shape.heads, shape.value_size, dtype=shape.dtype, device=META)
    arguments = attend_arguments(query, out, pages, step, shape, part, card, 0.1, None, None)
    used = part.configuration
    yield Build(f"{name}rows {used.rows} positions {used.positions}", attend_kernel, arguments, used.warps,
                used.stages, card)  # fmt: skip
    if part.partials is not None:
        yield Build(f"{name}merge of {part.splits}", merge_kernel, merge_arguments(out, step, shape, part, None), 4, 3,
                    card)  # fmt: skip


def with_configuration(build: Build, used: Configuration) -> Build:
    """The same attention kernel with other block sizes, for trying them out."""
    arguments = dict(build.arguments) | {"BLOCK_M": used.rows, "BLOCK_N": used.positions}
    return replace(build, arguments=arguments, warps=used.warps, stages=used.stages)


def _pages(model: Model, dtype: torch.dtype, formats: KVFormats) -> LayerPages:
    keeps = Keeps.LATENT if model.latent else Keeps.FULL
    layer = LayerCache(keeps, None, model.kv_heads, model.key_size, model.value_size)
    layout = build_layout((layer,) * model.layers, dtype.itemsize, 16, formats)
    return PageMemory(layout, 64, dtype, META).layers[0]


def _step(tokens: int) -> GroupStep:
    """One sequence with 16,384 positions before these tokens."""

    def numbers(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=META)

    return GroupStep(numbers(2), numbers(1), numbers(1, 1152), numbers(1), numbers(tokens, dtype=torch.int64), tokens,
                     16_384 + tokens)  # fmt: skip
