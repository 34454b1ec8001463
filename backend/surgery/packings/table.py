"""The packings by their method's name in config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from backend.surgery.packings.fp8 import compressed, fine_grained
from backend.surgery.packings.mxfp4 import Mxfp4Packing
from backend.surgery.packings.packing import Packing
from backend.surgery.packings.whole_numbers import AwqPacking, GptqPacking

PACKINGS: Mapping[str, Callable[[Mapping[str, Any]], Packing]] = MappingProxyType(
    {
        "fp8": fine_grained,
        "compressed-tensors": compressed,
        "gptq": GptqPacking,
        "awq": AwqPacking,
        "mxfp4": lambda quantization: Mxfp4Packing(),
    }
)
"""What makes a packing of the quantization_config of config.json, which `library.packed` has checked."""
