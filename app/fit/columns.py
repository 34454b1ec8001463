"""Columns of text that stand under each other, as wide as what is in them."""

from __future__ import annotations

from collections.abc import Sequence

_LEFT, _RIGHT = "<", ">"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int) -> list[str]:
    """The head and the rows as lines: two blanks between columns, or one where `width` asks for it.

    Arguments:
        align: "<" or ">" for each column.
    """
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    return [_line(row, widths, align, gap) for row in table]


def _line(row: Sequence[str], widths: Sequence[int], align: str, gap: str) -> str:
    return gap.join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
