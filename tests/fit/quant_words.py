"""QuantWords: which dtype and packing a case's words mean."""

from __future__ import annotations

import re

_GGUF = re.compile(r"\b((?:iq|q)\d(?:_[a-z0-9]+)*|bf16|f16|f32)\b", re.IGNORECASE)
_TELLS = (
    (r"mxfp4", "mxfp4"),
    (r"nvfp4|fp4", "nvfp4"),
    (r"w8a8|int8|smoothquant|w8a16|8bit", "int8"),
    (r"awq", "awq"),
    (r"w4a16|gptq|marlin", "gptq"),
    (r"bnb|nf4|bitsandbytes", "nf4-double"),
    (r"fp8|float8", "fp8"),
    (r"int4|wna16|4-bit|4bit", "int4"),
)
_MODEL_ONLY = re.compile(r"^\W*(bfloat16|float16|float32|bf16|fp16|fp32|half|auto)\W*$")


def dtype_of(quant: object) -> str | None:
    """The dtype that a case names; None where it names none."""
    words = str(quant or "").lower()
    for word, dtype in (("float32", "float32"), ("fp32", "float32"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16")):
        if word in words:
            return dtype
    return "float16" if re.search(r"\bfloat16|\bfp16|\bhalf", words) else None


def packing_of(quant: object, model: object) -> str | None:
    """The packing that a case's quantization means, or its model's name where that tells nothing; None for the
    checkpoint's own."""
    words, name = str(quant or "").lower(), str(model or "").lower()
    if "gguf" in words or name.endswith(".gguf"):
        found = _GGUF.search(words.replace("gguf", " ")) or _GGUF.search(name)
        return f"gguf:{found[1].upper()}" if found else None
    if re.search(r"fp8\W+(and\W+)?fp4", words):
        return None
    told = _told(words)
    if told is not None:
        return told
    if "unstated" in words or not words or "compressed" in words or "quant" in words:
        return _told(name)
    return "model" if _MODEL_ONLY.match(words.split("(")[0].strip()) else _told(name)


def _told(words: str) -> str | None:
    return next((packing for pattern, packing in _TELLS if re.search(pattern, words)), None)
