"""HandOverIndex: which pages lie in a folder that one engine writes and another reads. What moves them is DiskTier's.

The folder is asked at each question, because the other engine's pages are wanted as soon as they are there.
"""

from __future__ import annotations

from pathlib import Path

from kvcache.statistics import DiskStatistics
from kvcache.tiers.record_folder import RecordFolder
from kvcache.transfer import PageKey


class HandOverIndex:
    """A DiskIndex."""

    def __init__(self, folder: Path, budget: int, *, writable: bool) -> None:
        """folder: the first rank's: a page is there on all ranks or is a miss. Raises CacheFolderError."""
        self._folder, self._budget, self._writable = RecordFolder(folder), budget, writable

    def __contains__(self, key: PageKey) -> bool:
        return self._folder.has(key)

    @property
    def writable(self) -> bool:
        return self._writable

    def touch(self, key: PageKey) -> None:
        """Nothing: pages are wanted once."""

    def statistics(self) -> DiskStatistics:
        return DiskStatistics(budget=self._budget)
