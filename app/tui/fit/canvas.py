"""Canvas: a field of styled characters that pictures are put on, read out as Content. Pure."""

from __future__ import annotations

from textual.content import Content


class Canvas:
    """Grows downwards; what is put beyond the right edge is cut off."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._rows: list[list[tuple[str, str]]] = []

    @property
    def height(self) -> int:
        return len(self._rows)

    def put(self, x: int, y: int, text: str, style: str = "") -> None:
        while len(self._rows) <= y:
            self._rows.append([(" ", "")] * self.width)
        row = self._rows[y]
        for offset, character in enumerate(text):
            if 0 <= x + offset < self.width:
                row[x + offset] = (character, style)

    def free(self, x: int, y: int, cells: int, among: str) -> bool:
        """Whether nothing but lines lies there, so that a label may."""
        if y >= len(self._rows) or x < 0 or x + cells > self.width:
            return False
        return all(character in among for character, _ in self._rows[y][x : x + cells])

    def label(self, y: int, text: str, style: str, start: int = 0) -> bool:
        """Writes on a line, at the first place from `start` with room for the text and two cells at each side."""
        for x in range(start, self.width - len(text) - 3):
            if self.free(x, y, len(text) + 4, "─═"):
                self.put(x + 1, y, f" {text} ", style)
                return True
        return False

    def lines(self) -> list[Content]:
        return [_line(row) for row in self._rows]


def _line(row: list[tuple[str, str]]) -> Content:
    """Runs of one style together; blanks at the end go."""
    while row and row[-1][0] == " ":
        row = row[:-1]
    parts: list[tuple[str, str]] = []
    for character, style in row:
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + character, style)
        else:
            parts.append((character, style))
    return Content.assemble(*parts)
