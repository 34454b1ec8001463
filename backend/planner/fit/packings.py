"""Packings: how checkpoints and engines store weights, and the exact bytes each takes. What we store is `quant`'s.

Public: packing(name) -> Packing, with `linear_bytes(shape, element)` and `packed_bytes(facts, name)`; PACKINGS.

A name is one of PACKINGS, with "-g" and a group size where it has groups ("gptq-g32"). Two names with a plus between
them are for experts and for all other linears ("int4-g32+model"). GGUF's are "gguf:Q4_K_M" and the like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from backend.errors import SettingError
from backend.planner.model_facts import ModelFacts
from quant.weight_sizes import LinearShape

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FP32, _FP16 = 4, 2


@dataclass(frozen=True, slots=True)
class Packing:
    """One way to store a linear's weight [columns, depth].

    Attributes:
        name, title: for tables, and for people.
        weight: bytes of the packed weight with its scales, from columns, depth and group size; None for the dtype's.
        group: neighbours in a row that share a scale; 0 where the packing has no groups to choose.
        others: how linears beside the experts are stored where that differs, by a name.
        ends: whether the embedding and the output layer are packed as well (GGUF).
        bits: of a parameter, scales included, for large linears: to rank formats by, and for people.
        source: where the layout is told.
    """

    name: str
    title: str
    weight: Callable[[int, int, int], int] | None
    bits: float
    source: str
    group: int = 0
    others: str = ""
    ends: bool = False

    def linear_bytes(self, shape: LinearShape, element: int) -> int:
        """Bytes that one linear takes, bias included; `element` is the size of the model's dtype."""
        if self.others and not shape.expert:
            return packing(self.others).linear_bytes(shape, element)
        bias = shape.columns * element if shape.bias else 0
        if self.weight is None or (shape.kept and not self.ends):
            return shape.columns * shape.depth * element + bias
        return self.weight(shape.columns, shape.depth, self.group) + bias


def packed_bytes(facts: ModelFacts, name: str, element: int | None = None) -> int:
    """Bytes of a model's weights, or of a rank's share of them: packed linears, the rest in the model's dtype.

    facts: those with `linears`. element: bytes of the dtype where it is served in another than its own.
    """
    chosen, size = packing(name), element or _ELEMENT_BYTES[facts.native_dtype]
    counted = sum(chosen.linear_bytes(shape, size) * count for shape, count in facts.linears)
    inside = sum(shape.columns * (shape.depth + shape.bias) * count for shape, count in facts.linears)
    total = counted + (facts.parameters - inside) * size
    if not chosen.ends or chosen.weight is None:
        return total
    # The table of embeddings is no linear, and packed like one; a tied one was counted as the output layer.
    table = facts.vocabulary_parameters - facts.output_parameters
    rows = table // facts.hidden
    return total - table * size + (chosen.weight(rows, facts.hidden, chosen.group) if rows else 0)


def _blocks(length: int, size: int) -> int:
    return -(-length // size)


def _fp8(columns: int, depth: int, _: int) -> int:
    return columns * (depth + _FP32)


def _fp8_tensor(columns: int, depth: int, _: int) -> int:
    return columns * depth + 2 * _FP32


def _fp8_block(columns: int, depth: int, group: int) -> int:
    return columns * depth + _blocks(columns, group) * _blocks(depth, group) * _FP32


def _int4(columns: int, depth: int, group: int) -> int:
    return columns * (_blocks(depth, 2) + _blocks(depth, group) * _FP16)


def _awq(columns: int, depth: int, group: int) -> int:
    return _int4(columns, depth, group) + _blocks(columns, 2) * _blocks(depth, group)


def _gptq(columns: int, depth: int, group: int) -> int:
    return _awq(columns, depth, group) + depth * 4


def _gptq8(columns: int, depth: int, group: int) -> int:
    return columns * (depth + _blocks(depth, group) * (_FP16 + 1)) + depth * 4


def _nf4(columns: int, depth: int, group: int) -> int:
    return _blocks(columns * depth, 2) + _blocks(columns * depth, group) * _FP32


def _nf4_double(columns: int, depth: int, group: int) -> int:
    scales = _blocks(columns * depth, group)
    return _blocks(columns * depth, 2) + scales + _blocks(scales, 256) * _FP32


def _mxfp4(columns: int, depth: int, group: int) -> int:
    return columns * (_blocks(depth, 2) + _blocks(depth, group))


def _nvfp4(columns: int, depth: int, group: int) -> int:
    return _mxfp4(columns, depth, group) + 2 * _FP32


def _gguf(bits: float) -> Callable[[int, int, int], int]:
    return lambda columns, depth, _: round(columns * depth * bits / 8)


_TABLE = (
    Packing("model", "the model's own dtype", None, 16, "config.json's dtype"),
    Packing("fp8", "FP8, a scale a column", _fp8, 8, "compressed-tensors, float-quantized by channel"),
    Packing("fp8-tensor", "FP8, a scale a weight", _fp8_tensor, 8, "modelopt; compressed-tensors by tensor"),
    Packing("fp8-block", "FP8 in blocks", _fp8_block, 8 + 32 / 128**2, "DeepSeek-V3's weight_scale_inv", group=128),
    Packing("int8", "INT8, a scale a column", _fp8, 8, "compressed-tensors, int-quantized by channel (W8A8)"),
    Packing("int4", "INT4 without zero points", _int4, 4.125, "compressed-tensors, pack-quantized", group=128),
    Packing("awq", "AWQ", _awq, 4.15625, "AutoAWQ's GEMM layout: qweight, qzeros, scales", group=128),
    Packing("gptq", "GPTQ", _gptq, 4.16, "GPTQModel: qweight, qzeros, scales, g_idx", group=128),
    Packing("gptq8", "GPTQ of 8 bits", _gptq8, 8.19, "GPTQModel: qweight, qzeros, scales, g_idx", group=128),
    Packing("nf4", "bitsandbytes NF4", _nf4, 4.5, "bitsandbytes: a float32 absmax for 64", group=64),
    Packing("nf4-double", "bitsandbytes NF4, scales packed too", _nf4_double, 4.127, "QLoRA, section 3", group=64),
    Packing("bnb-int8", "bitsandbytes LLM.int8()", _fp8, 8, "bitsandbytes: int8 rows with a float32 scale each"),
    Packing("mxfp4", "MXFP4 experts", _mxfp4, 4.25, "OCP MX 1.0: an 8-bit exponent for 32", 32, "model"),
    Packing("nvfp4", "NVFP4", _nvfp4, 4.5, "NVIDIA modelopt: an FP8 scale for 16", group=16),
)
# llama.cpp's block formats exactly (ggml-common.h: bytes of a block by its weights), and what its mixtures come to
# on Llama-3.1-8B (tools/quantize/README.md), embeddings included.
_GGUF_BITS: Mapping[str, float] = MappingProxyType(
    {
        **{"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5, "Q4_0": 4.5},
        **{"Q6_K": 6.56, "Q5_K_M": 5.7, "Q5_K_S": 5.57, "Q4_K_M": 4.89, "Q4_K_S": 4.67, "Q3_K_L": 4.31},
        **{"Q3_K_M": 4.0, "Q3_K_S": 3.64, "Q2_K": 3.16, "IQ4_NL": 4.68, "IQ4_XS": 4.46, "IQ3_M": 3.76, "IQ3_S": 3.66},
        **{"IQ3_XS": 3.5, "IQ3_XXS": 3.25, "IQ2_M": 2.93, "IQ2_S": 2.74, "IQ2_XS": 2.58, "IQ2_XXS": 2.38},
        **{"IQ1_M": 2.15, "IQ1_S": 2.0, "MXFP4": 4.25},
    }
)
PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {one.name: one for one in _TABLE}
    | {
        f"gguf:{kind}": Packing(f"gguf:{kind}", f"GGUF {kind}", _gguf(bits), bits, "llama.cpp", ends=True)
        for kind, bits in _GGUF_BITS.items()
    }
)
"""Every packing with its usual group size."""
_NAME = re.compile(r"(?P<base>.+?)(?:-g(?P<group>\d+))?")


@cache
def packing(name: str) -> Packing:
    """The packing of that name, with a group size or a plus as above. Raises SettingError for one that is not known."""
    if "+" in name:
        experts, _, others = name.partition("+")
        return replace(packing(experts), name=name, others=packing(others).name)
    if name in PACKINGS:
        return PACKINGS[name]
    found = _NAME.fullmatch(name)
    base = PACKINGS.get(found["base"]) if found else None
    if found is None or base is None or not base.group or int(found["group"] or 0) < 1:
        raise SettingError(f"There is no packing {name!r}.", hint=f"There are {', '.join(PACKINGS)}.")
    return replace(base, name=name, group=int(found["group"]))
