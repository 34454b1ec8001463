"""Which quantized checkpoints can be read, by what config.json says of them; reading is `packings`' job. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from backend.errors import UnsupportedModelError


def refuse_unreadable(name: str, quantization: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError for packed weights of a method or variant that is not read, named."""
    method = quantization.get("quant_method") or "an unknown method"
    problem = PROBLEMS[method](quantization) if method in PROBLEMS else "that method is not known here"
    if problem:
        raise UnsupportedModelError(
            f"{name} has quantized weights, which this version does not read.",
            f"Its config.json says that they are packed by {method}: {problem}.",
            "Choose the model's unquantized checkpoint, or a GGUF file of it; --weights quantizes while loading.",
        )


def _fp8(quantization: Mapping[str, Any]) -> str:
    if quantization.get("fmt", "e4m3") != "e4m3":
        return f"only e4m3 numbers are read, and these are {quantization['fmt']}"
    blocks = quantization.get("weight_block_size")
    if blocks is not None and not (isinstance(blocks, list) and len(blocks) == 2):
        return f"its blocks are {blocks}, and only those of two sizes are read"
    return ""


def _compressed_tensors(quantization: Mapping[str, Any]) -> str:
    kind = quantization.get("format")
    if kind != "float-quantized":
        return f"only its format float-quantized is read, and this is {kind}"
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        if weights.get("type") != "float" or weights.get("num_bits") != 8:
            return "only 8-bit floating point weights are read"
        if weights.get("strategy") not in ("tensor", "channel", "block"):
            return f"its scales are one for each {weights.get('strategy')}, and not one for a tensor, channel or block"
    return ""


def _gptq(quantization: Mapping[str, Any]) -> str:
    if quantization.get("bits") not in (4, 8):
        return f"only 4 and 8 bits are read, and these are {quantization.get('bits')}"
    if quantization.get("dynamic"):
        return "its layers differ in how they are packed"
    form = quantization.get("checkpoint_format", "gptq")
    return "" if form in ("gptq", "gptq_v2") else f"only its formats gptq and gptq_v2 are read, and this is {form}"


def _awq(quantization: Mapping[str, Any]) -> str:
    if quantization.get("bits", 4) != 4:
        return f"only 4 bits are read, and these are {quantization['bits']}"
    version = str(quantization.get("version", "gemm")).lower()
    if version != "gemm":
        return f"only its version gemm is read, and this is {version}"
    return "" if quantization.get("zero_point", True) else "it has no zero points"


PROBLEMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "fp8": _fp8,
        "compressed-tensors": _compressed_tensors,
        "gptq": _gptq,
        "awq": _awq,
        "mxfp4": lambda quantization: "",
    }
)
"""What stands in the way of reading a method's checkpoint, or nothing; `surgery.packings` has a reader for each."""
