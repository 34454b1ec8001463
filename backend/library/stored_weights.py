"""How a checkpoint's files hold its weights: the packing that its config names, and bytes as its headers tell.

Public: stored_weights(config, tensors, layers), stored_gguf(header, bytes), other_elements(tensors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backend.library.gguf_header import GgufHeader
from backend.library.header import TensorEntry
from backend.library.outside import is_encoder, predicts_ahead
from backend.planner.fit.known_model import StoredWeights
from backend.planner.fit.packings import PACKINGS

Config = Mapping[str, Any]
# One scale for a whole row: a group longer than any row.
_ROW = 1 << 20
_SCALES = re.compile(r"(?:weight_scale\w*|weight_packed|qweight|qzeros|absmax|_scales|\.scales)$")
# llama.cpp's numbers for what a file is mostly made of (llama.h, llama_ftype).
_FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{19: "IQ2_XXS", 20: "IQ2_XS", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S"},
    **{27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 38: "MXFP4"},
}


def stored_weights(config: Config, tensors: Sequence[TensorEntry] | None, layers: int) -> StoredWeights:
    """What config and headers say; `tensors` None where there are no headers, `layers` the text model's own."""
    quantization = quantization_of(config)
    packing = _packing(quantization) if quantization else "model"
    excluded = tuple(str(one) for one in _excluded(quantization or {}))
    if tensors is None:
        # A pattern for the attention of every layer leaves experts to be packed, if anything.
        alone = any("attn" in one and "*" in one and not re.search(r"\d", one) for one in excluded)
        packed = packing in ("model", "mxfp4") or not alone
        return StoredWeights(packing if packed else f"{packing}+model", None, excluded)
    scaled = [tensor.name for tensor in tensors if _SCALES.search(tensor.name) and not is_encoder(tensor.name)]
    if packing not in ("model", "mxfp4") and scaled and all("expert" in name for name in scaled):
        packing += "+model"
    total = sum(tensor.bytes for tensor in tensors if not predicts_ahead(tensor.name, layers))
    return StoredWeights(packing, total, excluded)


def stored_gguf(header: GgufHeader) -> StoredWeights:
    """A GGUF file's weights, all of them packed as its own header says."""
    kind = _FILE_TYPES.get(int(header.values.get("general.file_type", -1)), "")
    total = sum(tensor.bytes for tensor in header.tensors)
    if f"gguf:{kind}" in PACKINGS:
        return StoredWeights(f"gguf:{kind}", total)
    # A mixture with no name: the kind that most bytes are of.
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="")
    names = [name for name in (f"gguf:{most}", f"gguf:{most}_M") if name in PACKINGS]
    return StoredWeights(names[0] if names else "gguf:Q8_0", total)


def other_elements(tensors: Sequence[TensorEntry]) -> int:
    """Elements of tensors that are an encoder's."""
    return sum(math.prod(tensor.shape) for tensor in tensors if is_encoder(tensor.name))


def quantization_of(config: Config) -> Config | None:
    """What the config says of packed weights, wherever it says it."""
    for place in (config, config.get("text_config")):
        if isinstance(place, Mapping):
            found = place.get("quantization_config") or place.get("compression_config")
            if isinstance(found, Mapping) and found:
                return found
    return None


def _excluded(quantization: Config) -> Sequence[object]:
    for name in ("ignore", "modules_to_not_convert", "exclude_modules", "llm_int8_skip_modules"):
        found = quantization.get(name)
        if isinstance(found, Sequence) and not isinstance(found, str):
            return found
    return ()


def _packing(quantization: Config) -> str:
    method = str(quantization.get("quant_method") or quantization.get("quant_algo") or "").lower()
    match method:
        case "fp8" | "fbgemm_fp8" | "finegrained_fp8":
            blocks = quantization.get("weight_block_size")
            return _in_blocks(blocks) if blocks else "fp8" if method == "fbgemm_fp8" else "fp8-tensor"
        case "gptq" | "auto-round" | "autoround" | "gptqmodel":
            kind = "gptq8" if quantization.get("bits") == 8 else "gptq"
            return _grouped(kind, quantization.get("group_size"))
        case "awq":
            return _grouped("awq", quantization.get("group_size") or quantization.get("q_group_size"))
        case "bitsandbytes":
            if not quantization.get("load_in_4bit"):
                return "bnb-int8"
            return "nf4-double" if quantization.get("bnb_4bit_use_double_quant") else "nf4"
        case "mxfp4":
            return "mxfp4"
        case "compressed-tensors" | "modelopt" | "modelopt_fp4" | "quark":
            return _by_groups(quantization)
        case _:
            return "model"


def _by_groups(quantization: Config) -> str:
    """compressed-tensors' and modelopt's: the group that most modules are in tells."""
    algorithm = str(quantization.get("quant_algo") or "").upper()
    if algorithm in ("FP8", "NVFP4"):
        return "fp8-tensor" if algorithm == "FP8" else "nvfp4"
    groups = [one for one in (quantization.get("config_groups") or {}).values() if isinstance(one, Mapping)]
    if not groups:
        return "nvfp4" if "nvfp4" in str(quantization.get("format", "")) else "model"
    largest = max(groups, key=lambda group: len(group.get("targets") or ()))
    weights = largest.get("weights") or {}
    form = str(largest.get("format") or quantization.get("format") or "")
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    if kind == "float" and bits == 4:
        return "mxfp4+fp8" if "mxfp4" in form and len(groups) > 1 else "mxfp4" if "mxfp4" in form else "nvfp4"
    if kind == "float":
        if strategy == "block":
            return _in_blocks(weights.get("block_structure"))
        return "fp8" if strategy == "channel" else "fp8-tensor"
    return "int8" if bits == 8 else _grouped("int4", weights.get("group_size"))


def _in_blocks(blocks: object) -> str:
    size = max(blocks) if isinstance(blocks, list | tuple) and blocks else 128
    return _grouped("fp8-block", size)


def _grouped(kind: str, size: object) -> str:
    """With the group's size where it is not the usual one."""
    usual = PACKINGS[kind].group
    if not isinstance(size, int) or size == usual:
        return kind
    return f"{kind}-g{size if size > 0 else _ROW}"
