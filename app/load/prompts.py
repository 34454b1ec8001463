"""Prompts of a wanted token length, cut from a public-domain text. Who counts the tokens is an argument."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from importlib import resources

from app.load.workload import Workload

Counter = Callable[[str], Awaitable[int]]
WORDS_PER_TOKEN = 0.75  # of English text, for where nobody counts
_FILLERS = (" a", " I", ".")


def bundled_words() -> list[str]:
    text = resources.files("assets") / "text" / "alice29.txt"
    return text.read_text(encoding="utf-8").split()


class PromptMaker:
    """Cuts prompts from `words`, each from a place of its own that the seed chooses.

    `count` counts tokens as the server does; None guesses from the number of words.
    """

    def __init__(self, words: list[str], seed: str, count: Counter | None) -> None:
        self._words, self._count = words, count
        self._random = random.Random(f"shardwise-{seed}")
        self._used: set[int] = set()

    async def make(self, workload: Workload) -> list[str]:
        shared = workload.shared_prefix_tokens
        prefix = await self.grow("", shared) if shared else ""
        return [await self.grow(prefix, shared + workload.prompt_tokens) for _ in range(workload.requests)]

    async def grow(self, prefix: str, tokens: int) -> str:
        """`prefix` and fresh text: as near to `tokens` in all as the tokenizer allows, never above."""
        start = self._start()
        prefix = f"{prefix} " if prefix else ""
        if self._count is None:
            missing = round(tokens * WORDS_PER_TOKEN) - len(prefix.split())
            return prefix + self._take(start, max(1, missing))
        low, high = 1, max(2, tokens)  # a word is at least one token
        while low < high:
            middle = (low + high + 1) // 2
            if await self._count(prefix + self._take(start, middle)) <= tokens:
                low = middle
            else:
                high = middle - 1
        return await self._fill(prefix + self._take(start, low), tokens, self._count)

    @staticmethod
    async def _fill(text: str, tokens: int, count: Counter) -> str:
        """Appends short words until `tokens` are reached: the next word of the text had too many."""
        length = await count(text)
        for filler in _FILLERS:
            while length < tokens:
                longer = await count(text + filler)
                if not length < longer <= tokens:
                    break
                text, length = text + filler, longer
        return text

    def _start(self) -> int:
        while True:
            place = self._random.randrange(len(self._words))
            if place not in self._used or len(self._used) > len(self._words) // 2:
                self._used.add(place)
                return place

    def _take(self, start: int, count: int) -> str:
        """`count` words from `start` on, from the front again after the last."""
        words = self._words
        return " ".join(words[(start + offset) % len(words)] for offset in range(count))
