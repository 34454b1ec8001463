"""PagePool: owns which pages are free and how many tables hold the others. What lies in a page is not its business."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Pages 0 to `total - 1`. A page is free, or held by as many tables as its count says.

    free pages:  [.. 7 2 5]   the last one freed is the first one handed out again, while caches still know it
    counts:      [1 0 ..]     by page id; 0 exactly for the free ones
    """

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool of {total} pages holds nothing")
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._counts = [0] * total

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` pages, each now held once; None, and nothing changed, where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._counts[page] = 1
        return taken

    def share(self, page: int) -> None:
        """One more table holds this page. Raises ValueError for a free page: its content is already lost."""
        if self._counts[page] == 0:
            raise ValueError(f"page {page} is free and cannot be shared")
        self._counts[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One table less holds each of these pages. Raises ValueError where nobody holds one."""
        for page in pages:
            if self._counts[page] == 0:
                raise ValueError(f"page {page} is released by somebody who does not hold it")
            self._counts[page] -= 1
            if self._counts[page] == 0:
                self._free.append(page)

    def count(self, page: int) -> int:
        """How many tables hold this page."""
        return self._counts[page]

    def check_integrity(self) -> None:
        """Raises AssertionError unless the free pages are exactly those that nobody holds, each listed once."""
        unheld = [page for page, count in enumerate(self._counts) if count == 0]
        assert sorted(self._free) == unheld, "the free list and the reference counts disagree"
        assert min(self._counts) >= 0, "a page is held a negative number of times"
