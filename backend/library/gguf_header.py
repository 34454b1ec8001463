"""Reads the header of one GGUF file, trusting no number in it; only a file that passed is given to other readers."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

from backend.errors import UnsupportedModelError
from backend.library.header import TensorEntry, broken

Scalar = int | float | bool | str

# Far above any model there is: the largest vocabulary has 262,144 tokens and 580,604 merges.
_ENTRY_LIMIT = 65_536
_ARRAY_LIMIT = 4_194_304
_STRING_LIMIT = 16 << 20
_KEPT_STRING_LIMIT = 65_536
_DIMENSION_LIMIT = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
# GGUF value type to struct code; the format is little-endian.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself: its single values (no arrays) and its tensors in the order of offsets."""

    values: dict[str, Scalar] = field(hash=False)
    tensors: tuple[TensorEntry, ...]

    @property
    def architecture(self) -> str:
        """The file's word for the kind of model, such as llama; empty where it has none."""
        return str(self.values.get("general.architecture", ""))


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of the file. Raises BrokenModelError, or UnsupportedModelError for a kind of GGUF not read here."""
    try:
        with path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(str(path), data).header()
    except (OSError, ValueError) as error:
        # mmap gives ValueError for an empty file.
        raise broken(str(path), f"{error}.") from error


class _Reader:
    """A cursor over the mapped file; every step is checked against the bytes that remain."""

    def __init__(self, file: str, data: mmap.mmap) -> None:
        self._file, self._data, self._size, self._at = file, data, len(data), 0
        self._elements = 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise broken(self._file, "It does not start with 'GGUF'.")
        version = self._number("I")
        if version not in {2, 3}:
            raise UnsupportedModelError(
                f"{self._file} cannot be read.",
                f"It says it is GGUF version {version}; versions 2 and 3 are read.",
            )
        tensor_count, value_count = self._number("Q"), self._number("Q")
        # The least a tensor takes is name length, dimensions, type, offset; a value takes key length, type, one byte.
        self._bound(tensor_count, 24, _ENTRY_LIMIT, "tensors")
        self._bound(value_count, 13, _ENTRY_LIMIT, "values")
        values = self._values(value_count)
        if int(values.get("split.count", 1)) > 1:
            raise UnsupportedModelError(
                f"{self._file} is one part of several.",
                f"It says there are {values['split.count']} parts.",
                "Merge them with llama.cpp's `llama-gguf-split --merge`, or choose a file in one part.",
            )
        return GgufHeader(values, self._tensors(tensor_count, values.get("general.alignment", 32)))

    def _take(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise broken(self._file, f"It ends at byte {self._size:,} where {count:,} more bytes belong.")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, code: str) -> int:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _bound(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        remain = self._size - self._at
        if count > limit or count * least_bytes > remain:
            raise broken(self._file, f"It claims {count:,} {what} at byte {self._at:,}; {remain:,} bytes remain.")

    def _string(self) -> str:
        length = self._number("Q")
        self._bound(length, 1, _STRING_LIMIT, "bytes of text")
        return self._take(length).decode("utf-8", "replace")

    def _values(self, count: int) -> dict[str, Scalar]:
        values: dict[str, Scalar] = {}
        names: set[str] = set()
        for _ in range(count):
            name = self._string()
            if name in names:
                raise broken(self._file, f"The value {name[:80]!r} occurs twice.")
            names.add(name)
            value = self._value(self._number("I"), name)
            if value is not None:
                values[name] = value
        return values

    def _value(self, kind: int, name: str) -> Scalar | None:
        if kind == _STRING:
            text = self._string()
            return text if len(text) <= _KEPT_STRING_LIMIT else None
        if kind == _ARRAY:
            self._skip_array(name)
            return None
        if kind not in _CODES:
            raise broken(self._file, f"The value {name[:80]!r} has the unknown type {kind}.")
        number = self._number(_CODES[kind])
        return bool(number) if kind == _BOOL else number

    def _skip_array(self, name: str) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind not in _CODES and kind != _STRING:
            raise broken(self._file, f"The value {name[:80]!r} is a list of the unknown type {kind}.")
        least = 8 if kind == _STRING else struct.calcsize(_CODES[kind])
        self._bound(count, least, _ARRAY_LIMIT, "list elements")
        self._elements += count
        if self._elements > 2 * _ARRAY_LIMIT:
            raise broken(self._file, f"Its lists have more than {2 * _ARRAY_LIMIT:,} elements.")
        if kind != _STRING:
            self._at += count * least
            return
        # Kept apart from _string: this is the one loop that runs half a million times for a good file.
        at, size, read = self._at, self._size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if size - at < 8:
                raise broken(self._file, f"It ends within the list {name[:80]!r}.")
            at += 8 + read(self._data, at)[0]
            if at > size:
                raise broken(self._file, f"A text in the list {name[:80]!r} is longer than the file.")
        self._at = at

    def _tensors(self, count: int, alignment: Scalar) -> tuple[TensorEntry, ...]:
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise broken(self._file, f"Its alignment is {alignment!r}, no power of two.")
        entries = [self._tensor() for _ in range(count)]
        start = -(-self._at // alignment) * alignment
        if len({entry.name for entry in entries}) != count:
            raise broken(self._file, "Two of its tensors have the same name.")
        placed: list[TensorEntry] = []
        position = start
        for entry in sorted(entries, key=lambda entry: entry.start):
            begin = start + entry.start
            if entry.start % alignment or begin < position:
                raise broken(self._file, f"Tensor {entry.name[:80]!r} overlaps another or is not aligned.")
            position = begin + entry.bytes
            if position > self._size:
                raise broken(
                    self._file,
                    f"Tensor {entry.name[:80]!r} ends at byte {position:,}, the file at byte {self._size:,}.",
                )
            placed.append(TensorEntry(entry.name, entry.dtype, entry.shape, self._file, begin, entry.bytes))
        return tuple(placed)

    def _tensor(self) -> TensorEntry:
        """One entry of the table; its `start` still counts from the beginning of the tensors' data."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= _DIMENSION_LIMIT:
            raise broken(self._file, f"Tensor {name[:80]!r} has {dimensions} dimensions.")
        sizes = [self._number("Q") for _ in range(dimensions)]
        kind, offset = self._number("I"), self._number("Q")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise UnsupportedModelError(
                f"{self._file} cannot be read.", f"Tensor {name[:80]!r} has the unknown type {kind}."
            ) from None
        if 0 in sizes or sizes[0] % block:
            raise broken(self._file, f"Tensor {name[:80]!r} has the impossible shape {sizes}.")
        # GGUF lists the innermost dimension first.
        shape = tuple(reversed(sizes))
        size = math.prod(sizes) // block * block_bytes
        return TensorEntry(name, GGMLQuantizationType(kind).name, shape, self._file, offset, size)
