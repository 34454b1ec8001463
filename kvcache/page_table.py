"""PageTable: a sequence's ordered pages in one cache group. Taking pages and giving them back is CacheManager's."""

from __future__ import annotations

from kvcache.layout import oldest_seen


class PageTable:
    """The pages of the positions from `first * page_tokens` on.

        positions   0 ........ 15 | 16 ....... 31 | 32 ....... 47 | 48 ...
        page        (released)    | ids[0]        | ids[1]        |            here first = 1

    `first` is above 0 only where a sliding window has left pages behind. Methods that drop pages return them: the
    caller owes them to the pool.
    """

    __slots__ = ("chunked", "first", "ids", "page_tokens", "window")

    def __init__(self, page_tokens: int, window: int | None, chunked: bool = False) -> None:
        """window: positions that a token sees, itself included; with `chunked`, those of a chunk. None for all."""
        self.page_tokens = page_tokens
        self.window = window
        self.chunked = chunked
        self.first = 0
        self.ids: list[int] = []

    def page(self, number: int) -> int:
        """The id of the page of the positions from `number * page_tokens` on, which the table holds."""
        return self.ids[number - self.first]

    def missing(self, length: int) -> int:
        """How many pages must be appended before the positions below `length` have one."""
        return max(0, -(-length // self.page_tokens) - self.first - len(self.ids))

    def oldest_seen(self, position: int) -> int:
        """The first position that the token at `position` sees."""
        return oldest_seen(position, self.window, self.chunked)

    def slide(self, position: int) -> list[int]:
        """Drops the pages that no token from `position` on can see."""
        # A page that does not exist yet cannot be left behind: it will be appended at its place.
        behind = min(self.oldest_seen(position) // self.page_tokens - self.first, len(self.ids))
        if behind <= 0:
            return []
        dropped = self.ids[:behind]
        del self.ids[:behind]
        self.first += behind
        return dropped

    def can_continue_at(self, position: int) -> bool:
        """Whether all that the token at `position` sees, itself aside, is still held."""
        return self.oldest_seen(position) >= self.first * self.page_tokens

    def truncate(self, length: int) -> list[int]:
        """Drops the pages past the positions below `length`, at which the table can continue."""
        kept = max(0, -(-length // self.page_tokens) - self.first)
        dropped = self.ids[kept:]
        del self.ids[kept:]
        return dropped

    def clear(self) -> list[int]:
        """Drops all pages; the table begins at position 0 again."""
        dropped = list(self.ids)
        self.ids.clear()
        self.first = 0
        return dropped

    def most_pages(self, length: int, step_tokens: int) -> int:
        """Most pages held at once by a sequence that grows to `length`, at most `step_tokens` positions a step."""
        whole = -(-length // self.page_tokens)
        if self.window is None:
            return whole
        # The window before the step's first token, and the step's own; they may begin anywhere in a page.
        span = self.window - 1 + step_tokens
        return min(whole, (span + self.page_tokens - 2) // self.page_tokens + 1)
