"""What a layer's mask lets through, by asking transformers' own mask function; odd masks are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcache.layout import Keeps, oldest_seen

MaskFunction = Callable[[int, int, Tensor, Tensor], Tensor]
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Mask:
    """Stands in for a mask tensor: the function that says which key position a query position may see."""

    function: MaskFunction

    def __getitem__(self, part: Any) -> Mask:
        """The mask without its dimension of heads, for modules that ask for that: still the same.

        Raises TypeError for another part.
        """
        if part not in ((slice(None), 0), (slice(None), 0, slice(None), slice(None))):
            raise TypeError("a part of the mask is asked for")
        return self


@dataclass(frozen=True, slots=True)
class Sight:
    """What tokens see of the positions up to their own: `keeps` is full, sliding or chunked, and `window` as there."""

    keeps: Keeps
    window: int | None


class OddMaskError(Exception):
    """A mask that we would not reproduce; the text goes after 'the mask of LAYER'."""


def sight(mask: Mask, longest: int) -> Sight:
    """How far tokens see at positions up to `longest`.

    Raises:
        OddMaskError: a mask that is neither causal nor a sliding window nor chunks.
    """
    function = _without_padding(mask.function)
    try:
        # As many tokens see the first position as a window is wide, or a chunk long.
        width = sum(int(seen.sum()) for _, seen in _asked(function, longest + 1, query=None))
        queries = {0, 1, longest // 3, longest, *(width + step for step in (-1, 0, 1)), 2 * width - 1, 2 * width + 1}
        rows = {query: _row(function, query, longest + 8) for query in sorted(queries) if 0 <= query <= longest}
    except (RuntimeError, IndexError, NotImplementedError) as error:
        raise OddMaskError("depends on more than positions") from error
    if any(row is None or row[1] != query for query, row in rows.items()):
        raise OddMaskError("is not causal")
    for candidate in (Sight(Keeps.FULL, None), Sight(Keeps.SLIDING, width), Sight(Keeps.CHUNKED, width)):
        chunked = candidate.keeps is Keeps.CHUNKED
        if all(row == (oldest_seen(query, candidate.window, chunked), query) for query, row in rows.items()):
            return candidate
    raise OddMaskError("is neither causal, nor a sliding window, nor chunks")


def _row(function: MaskFunction, query: int, length: int) -> tuple[int, int] | None:
    """The first and last key position below `length` that the query position sees; None for none, or with gaps."""
    first, last, count = length, -1, 0
    for start, seen in _asked(function, length, query=query):
        found = torch.nonzero(seen).flatten()
        if found.numel():
            first, last = min(first, start + int(found[0])), start + int(found[-1])
            count += found.numel()
    return (first, last) if count and count == last - first + 1 else None


def _asked(function: MaskFunction, length: int, *, query: int | None) -> Iterator[tuple[int, Tensor]]:
    """The function's answers for positions below `length`, block by block, each with its first position.

    Positions are those of keys that the query sees; without a query, those of queries that see the first key.
    """
    for start in range(0, length, _BLOCK):
        positions = torch.arange(start, min(length, start + _BLOCK), device="cpu")
        fixed = torch.full_like(positions, 0 if query is None else query)
        pair: Any = (positions, fixed) if query is None else (fixed, positions)
        yield start, function(0, 0, *pair).cpu()


def _without_padding(function: MaskFunction) -> MaskFunction:
    """The function, told that its sequence has no padding to the left, and text alone.

    Chunks are counted from the end of that padding, and a model traced without data does not know that there is none.
    """
    for name, cell in _cells(function):
        if name == "left_padding" and isinstance(cell.cell_contents, Tensor):
            cell.cell_contents = torch.zeros(cell.cell_contents.shape, dtype=torch.long, device="cpu")
        elif name == "block_sequence_ids" and isinstance(cell.cell_contents, Tensor) and cell.cell_contents.is_meta:
            cell.cell_contents = _NoBlocks()
    return function


class _NoBlocks:
    """Stands in for the tensor that says to which image or sound a token belongs: text belongs to none."""

    def __getitem__(self, at: tuple[int, Tensor]) -> Tensor:
        return torch.full_like(at[1], -1)


def _cells(function: Any) -> Iterator[tuple[str, Any]]:
    """The variables that a function, and those it combines, hold from where they were made."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        yield name, cell
        held = cell.cell_contents
        for inner in held if isinstance(held, tuple | list) else (held,):
            if callable(inner) and inner is not function:
                yield from _cells(inner)
