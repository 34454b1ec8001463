"""Bytes that a linear's weight takes in each WeightFormat, by formula: a plan has them before loading. No torch.

`quant.weights` stores them; a conformance test holds each formula to what is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Depths are filled up to what kernels want: the int8 and fp8 products their alignment, nf4 whole blocks in each row.
DEPTH_MULTIPLE = 16
NF4_BLOCK = 64
# The processor's packed product takes whole vectors of columns.
_LANES = 16
_SCALE_BYTES = 4
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Rows of a step that a product takes at once, so that its temporaries stay small.
PRODUCT_ROWS, FP8_PRODUCT_ROWS = 256, 1024


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer's weight, or one expert's.

    Attributes:
        columns, depth: it maps [depth] to [columns].
        bias: whether it has one.
        kept: it stays in the model's dtype whatever the format: the output layer, and what chooses experts.
        expert: it is one of a stack of experts, which is not packed for the processor while it is in the dtype.
    """

    columns: int
    depth: int
    bias: bool = False
    kept: bool = False
    expert: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """Where weights are stored: the model's dtype by its name, and whether on a GPU."""

    dtype: str
    cuda: bool

    @property
    def element(self) -> int:
        return _ELEMENT_BYTES[self.dtype]


def fill(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def _model(shape: LinearShape, storage: Storage) -> int:
    pair = 2 if storage.dtype == "bfloat16" else 1
    if storage.cuda or shape.expert or storage.dtype == "float16" or shape.depth % pair:
        return shape.columns * (shape.depth + shape.bias) * storage.element
    # The packed product starts its sums at the bias, or at zero. (Of layers that are merged, only the last is filled
    # up: where columns are no multiple of 16, this counts a little more than is held.)
    return fill(shape.columns, _LANES) * (shape.depth * storage.element + 4)


def _int8(shape: LinearShape, storage: Storage) -> int:
    row = fill(shape.depth, DEPTH_MULTIPLE) + _SCALE_BYTES
    return shape.columns * (row + shape.bias * storage.element)


def _nf4(shape: LinearShape, storage: Storage) -> int:
    depth = fill(shape.depth, NF4_BLOCK)
    scale = _SCALE_BYTES if storage.cuda else 2
    return shape.columns * (depth // 2 + depth // NF4_BLOCK * scale + shape.bias * storage.element)


def _fp8(shape: LinearShape, storage: Storage) -> int:
    row = fill(shape.depth, DEPTH_MULTIPLE) + _SCALE_BYTES
    return fill(shape.columns, DEPTH_MULTIPLE) * row + shape.columns * shape.bias * storage.element


WEIGHT_SIZES: Mapping[str, Callable[[LinearShape, Storage], int]] = MappingProxyType(
    {"model": _model, "int8": _int8, "nf4": _nf4, "fp8": _fp8}
)
"""The formula of each format in `quant.weight_format`, by its name."""


def stored_bytes(weight_format: str, shape: LinearShape, storage: Storage) -> int:
    """Bytes that the layer takes, bias included."""
    return WEIGHT_SIZES["model" if shape.kept else weight_format](shape, storage)


def product_bytes(weight_format: str, columns: int, depth: int, storage: Storage) -> int:
    """Temporaries of a product beside its result: rounded inputs and whole sums, or the weight as it was."""
    match weight_format:
        case "nf4":
            return columns * depth * storage.element
        case "int8":
            return PRODUCT_ROWS * (16 * columns + 14 * depth)
        case "fp8":
            return FP8_PRODUCT_ROWS * (2 * columns + 9 * depth)
        case _:
            return 0
