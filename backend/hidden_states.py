"""HiddenStates: what one stage hands the next, as bytes with their shape. Torch-free; how they travel, others know."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

# The types in which models compute, by torch's names for them, and bytes of an element.
DTYPE_BYTES = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4})


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The hidden states [rows, columns] of a batch's tokens, flat over its slices: row-major, little-endian.

    Attributes:
        dtype: one of DTYPE_BYTES.
        data: exactly rows * columns elements; read only. It may be a view of memory that its owner frees or writes
            again after the next step, so send it, or copy it, before.
    """

    dtype: str
    rows: int
    columns: int
    data: memoryview | bytes

    @property
    def nbytes(self) -> int:
        """Bytes that the shape takes, whatever `data` has."""
        return self.rows * self.columns * DTYPE_BYTES[self.dtype]

    def check(self, dtype: str, rows: int, columns: int) -> None:
        """Raises ValueError unless these are `rows` by `columns` elements of `dtype`, and all of them are here."""
        if (self.dtype, self.rows, self.columns) != (dtype, rows, columns):
            found = f"{self.dtype} [{self.rows}, {self.columns}]"
            raise ValueError(f"hidden states are {found}, and should be {dtype} [{rows}, {columns}]")
        held = self.data.nbytes if isinstance(self.data, memoryview) else len(self.data)
        if held != self.nbytes:
            raise ValueError(f"hidden states take {self.nbytes} bytes, and {held} came")
