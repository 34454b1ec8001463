"""Transfers: one page's bytes from one tier to another, as plain data. CacheManager orders them, PageMover does them.

    device pages ⇄ host slots → disk records → device pages

A page on a lower tier is found by its key. The orders of one Batch, and of one Batch after another, are begun in their
order, before the batch computes; the mover keeps these promises:

1. A copy that reads a device page reads what lay there when its batch began, even if that very batch, or a later one,
   writes the page: whoever evicts a page may hand it out in the same batch.
2. A copy that reads a host slot sees what an earlier order wrote there.
3. A copy that writes a device page has happened only once its TransferDone says so; until then no batch names the page.

So the source of an offload is free at once, and a host slot that is being written to disk, like a device page that is
being fetched into, stays held until its TransferDone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kvcache.statistics import DiskStatistics

# SHA-256 over the tokens from the first position to the page's end, and all else that its bytes depend on; 32 bytes.
PageKey = bytes


class Tier(Enum):
    """Where pages live, from the fastest on."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Place:
    """A page of the device, by its id; a slot of the host; or the disk, where the key says which (index 0)."""

    tier: Tier
    index: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Copy the bytes of the page `key` from `source` to `target`. `number` is unique over the engine's life.

    `group` is the index of the page's cache group, which says how its bytes are split over heads. `owner` tags whose
    page it is, so that revoking an API key can delete its records: 16 bytes, or empty for nobody's.
    """

    number: int
    key: PageKey
    source: Place
    target: Place
    group: int = 0
    owner: bytes = b""


@dataclass(frozen=True, slots=True)
class TransferDone:
    """A transfer has ended: it succeeded, or nothing usable is at its target (a missing, broken or foreign record, a
    full disk). `bytes` were copied in `seconds`, waiting not counted; a rate is made of their sums."""

    number: int
    succeeded: bool
    bytes: int
    seconds: float


class DiskIndex(Protocol):
    """What the cache manager asks of the disk tier. Answers are hints: a fetch may still fail, which is a miss."""

    def __contains__(self, key: PageKey) -> bool:
        """Whether a record with this key was there when last looked. Does not touch the disk."""
        ...

    @property
    def writable(self) -> bool:
        """Whether storing makes sense: False for a read-only folder, another server's, or after a full disk."""
        ...

    def touch(self, key: PageKey) -> None:
        """The record was wanted again: it is evicted later."""
        ...

    def statistics(self) -> DiskStatistics:
        """A snapshot for the statistics; called at every step."""
        ...
