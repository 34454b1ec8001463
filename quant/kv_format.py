"""KVFormat: how K or V are stored, as a name and bytes; turning tensors into it and back is `quant.kv`'s. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class KVFormat:
    """One way to store the K (or V) of a token and head.

    Attributes:
        name: its name in settings, plans and page keys.
        fixed_bytes: bytes of an element; None for those of the model's own type.
        scale_bytes: bytes of the scale that each token and head has of its own; 0 where there is none.
    """

    name: str
    fixed_bytes: int | None
    scale_bytes: int

    def element_bytes(self, model_bytes: int) -> int:
        """Bytes of one stored element, where the model's own type has `model_bytes`."""
        return model_bytes if self.fixed_bytes is None else self.fixed_bytes

    def row_bytes(self, size: int, model_bytes: int) -> int:
        """Bytes of one token and head of `size` elements, its scale included."""
        return size * self.element_bytes(model_bytes) + self.scale_bytes


MODEL = KVFormat("model", None, 0)
# e4m3: 4 bits of exponent, 3 of mantissa, largest value 448. The scale is a bfloat16.
FP8 = KVFormat("fp8", 1, 2)
# -127 to 127, symmetric. The scale is a bfloat16.
INT8 = KVFormat("int8", 1, 2)

KV_FORMATS: Mapping[str, KVFormat] = MappingProxyType({one.name: one for one in (MODEL, FP8, INT8)})


@dataclass(frozen=True, slots=True)
class KVFormats:
    """K's and V's format, which may differ."""

    key: KVFormat = MODEL
    value: KVFormat = MODEL

    def __str__(self) -> str:
        """As `parse_kv_formats` reads it: `int8`, or `k=int8,v=fp8`."""
        return self.key.name if self.key == self.value else f"k={self.key.name},v={self.value.name}"


def parse_kv_formats(text: str) -> KVFormats:
    """The formats that `model`, `fp8`, `int8` or `k=F,v=F` name; a part that is left out is the model's own.

    Raises ValueError, with the choices, for anything else.
    """
    chosen = {"k": MODEL, "v": MODEL}
    if text in KV_FORMATS:
        return KVFormats(KV_FORMATS[text], KV_FORMATS[text])
    named: set[str] = set()
    for part in text.split(","):
        which, _, name = part.strip().partition("=")
        if which not in chosen or name not in KV_FORMATS or which in named:
            raise ValueError(f"it knows {', '.join(KV_FORMATS)}, for both or as k=FORMAT,v=FORMAT")
        named.add(which)
        chosen[which] = KV_FORMATS[name]
    return KVFormats(chosen["k"], chosen["v"])
