"""Which replica a request goes to: that with the least to do, of equals the one that has seen its beginning. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

_SHORTEST_PREFIX = 32
_REMEMBERED = 8192


def choose(running: Sequence[int | None], home: int | None) -> int | None:
    """The number of a replica; None where none is ready.

    running: requests at each, None where it is not ready. home: the one whose cache knows the most of the prompt.
    """
    ready = [(count, number != home, number) for number, count in enumerate(running) if count is not None]
    return min(ready)[2] if ready else None


class PrefixHomes:
    """Remembers to which replica beginnings of prompts went, the newest few thousand.

    A wrong memory costs only a longer prefill; equal hashes of unequal prompts therefore do no harm.
    """

    def __init__(self) -> None:
        self._homes: OrderedDict[int, int] = OrderedDict()

    def find(self, salt: bytes, prompt: Sequence[int]) -> int | None:
        """Where the longest known beginning of this prompt went."""
        found = (self._homes.get(key) for key in reversed(list(_prefixes(salt, prompt))))
        return next((home for home in found if home is not None), None)

    def note(self, salt: bytes, prompt: Sequence[int], home: int) -> None:
        """This prompt is computed there."""
        for key in _prefixes(salt, prompt):
            self._homes[key] = home
            self._homes.move_to_end(key)
        while len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)


def _prefixes(salt: bytes, prompt: Sequence[int]) -> Iterator[int]:
    """A number for the prompt's beginnings of 32, 64, 128, ... tokens."""
    length = _SHORTEST_PREFIX
    while length <= len(prompt):
        yield hash((salt, tuple(prompt[:length])))
        length *= 2
