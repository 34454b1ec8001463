"""HashingRank: a rank's compute as a hash of the tokens it was fed, as a model with a cache would see them."""

from __future__ import annotations

from backend.batch import Batch, Sampled, Slice
from tests.fakes.engine_options import next_token

PAGES = 1024


class HashingRank:
    """Keeps tokens in pages, so a page that is lost or given to two changes the answer."""

    def __init__(self, page_tokens: int) -> None:
        self._pages = [[0] * page_tokens for _ in range(PAGES)]

    def execute(self, batch: Batch) -> list[Sampled | None]:
        results: list[Sampled | None] = []
        for part in batch.slices:
            fed = self._feed(part)
            results.append(None if part.sample is None else Sampled(next_token(fed)))
        return results

    def _feed(self, part: Slice) -> list[int]:
        """Writes the slice's tokens into its pages: all tokens up to its end."""
        own = [self._pages[page] for page in part.spans[0].ids]
        size = len(self._pages[0])
        for position, token in enumerate(part.tokens, part.start):
            own[position // size][position % size] = token
        return [token for page in own for token in page][: part.start + len(part.tokens)]
