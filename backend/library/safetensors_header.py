"""Reads the header of one safetensors file, trusting no number in it. Which files make up a model is `folders`'."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TypeGuard

from backend.library.header import TensorEntry, broken

_HEADER_LIMIT = 100 << 20
_NAME_LIMIT = 1024
_DIMENSION_LIMIT = 8
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def read_safetensors_header(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of the file in the order of their offsets. Raises BrokenModelError; reads the header only."""
    file = str(path)
    try:
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            prefix = source.read(8)
            if len(prefix) < 8:
                raise broken(file, f"It has {size} bytes, fewer than the 8 of its header's length.")
            text = source.read(header_length(file, prefix, size))
    except OSError as error:
        raise broken(file, str(error)) from error
    return parse_safetensors_header(file, prefix, text, size)


def header_length(file: str, prefix: bytes, size: int) -> int:
    """Bytes of the header, which its first 8 tell. Raises BrokenModelError where a file of `size` cannot have them."""
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, _HEADER_LIMIT):
        raise broken(file, f"Its header claims {length:,} bytes; {size - 8:,} follow, 104,857,600 are allowed.")
    return length


def parse_safetensors_header(file: str, prefix: bytes, text: bytes, size: int) -> tuple[TensorEntry, ...]:
    """The tensors that a header tells of, wherever its bytes came from: the first 8, what follows, the file's size.

    Raises BrokenModelError.
    """
    length = header_length(file, prefix, size)
    if len(text) < length:
        raise broken(file, f"It ends within its header of {length:,} bytes.")
    start = 8 + length
    tensors = [_entry(file, name, value, start) for name, value in _parse(file, text).items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.bytes))
    _check_offsets(file, tensors, start, size)
    return tuple(tensors)


def _parse(file: str, text: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a name occurs twice")
        return values

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise broken(file, f"Its header is not valid: {error}.") from error
    if not isinstance(parsed, dict):
        raise broken(file, "Its header is not a JSON object.")
    return parsed


def _entry(file: str, name: str, value: object, data_start: int) -> TensorEntry:
    shown = name[:80]
    if len(name) > _NAME_LIMIT or not isinstance(value, dict):
        raise broken(file, f"The header's entry {shown!r} is not a tensor's.")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise broken(file, f"Tensor {shown!r} has an unknown dtype.")
    if not _are_counts(shape) or len(shape) > _DIMENSION_LIMIT:
        raise broken(file, f"Tensor {shown!r} has no valid shape.")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(file, f"Tensor {shown!r} has no valid offsets.")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != (end - begin) * 8:
        raise broken(file, f"Tensor {shown!r} of {dtype} {shape} needs {bits // 8} bytes and has {end - begin}.")
    return TensorEntry(name, dtype, tuple(shape), file, data_start + begin, end - begin)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 1 << 63 for count in value)


def _check_offsets(file: str, tensors: list[TensorEntry], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise broken(file, f"Tensor {tensor.name[:80]!r} {kind}.")
        position += tensor.bytes
    if position != size:
        raise broken(file, f"Its tensors end at byte {position:,}, the file at byte {size:,}.")
