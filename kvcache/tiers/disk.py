"""DiskTier: the index of a page folder, its budget, and what to do when the disk fails. Files are RecordFolder's.

The folder is the index: a scan gives the keys, their sizes and the order of their use, so nothing else has to survive
a process. One server writes and evicts in a folder, the others read. A failure is never the caller's: a store says
False, a load says why there is no page.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvcache.statistics import DiskStatistics
from kvcache.tiers.record import Miss, PageShape, RecordHeader, Signer
from kvcache.tiers.record_folder import RecordFolder
from kvcache.transfer import PageKey

# After a write has failed, nothing is written for so long; and so often a reader looks whether it may write, and what
# is new.
BACK_OFF_SECONDS = 30.0
# A record's last use is noted on disk at most so often.
TOUCH_SECONDS = 60.0
# Errors that tell of one record's place, such as a folder in it, and not of the disk.
_OF_ONE_RECORD = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY})
# Misses after which a record is of no use to anybody. What the system could not read may be right tomorrow.
_BROKEN = frozenset({Miss.TRUNCATED, Miss.FOREIGN, Miss.MISPLACED, Miss.FORGED})


@dataclass(slots=True)
class _Entry:
    bytes: int
    noted: float


class DiskTier:
    """A DiskIndex. Safe to use from several threads; only `store`, `load`, `tend` and `close` touch the disk."""

    def __init__(
        self,
        folder: RecordFolder,
        budget: int,
        *,
        secret: bytes,
        namespace: bytes,
        model: str,
        shapes: tuple[PageShape, ...],
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the folder's index, and evicts what is over the budget. Owns the folder from now on.

        budget: most bytes of all records in the folder; shapes: of a page of each cache group; writes: whether it ever
        becomes the one that writes; clock: in seconds.
        Raises ValueError for a secret or namespace that no record can have.
        """
        RecordHeader.make(bytes(32), namespace, b"", shapes[0])
        self._folder, self._budget, self._signer, self._clock = folder, budget, Signer(secret), clock
        self._namespace, self._model, self.shapes, self._may_write = namespace, model, shapes, writes
        self._guard = threading.Lock()
        self._records: OrderedDict[PageKey, _Entry] = OrderedDict()
        self._bytes = self._last_use = 0
        self._to_note: dict[PageKey, int] = {}
        self._rejected: set[PageKey] = set()
        self._misses: Counter[Miss] = Counter()
        self._stored = self._evictions = self._failed_writes = 0
        self._writer = self._failing = False
        self._look_again = 0.0
        self._look()

    @classmethod
    def open(
        cls,
        path: Path,
        budget: int,
        *,
        secret: bytes,
        namespace: bytes,
        model: str,
        shapes: tuple[PageShape, ...],
        writes: bool = True,
    ) -> DiskTier:
        """A tier in the folder at `path`, which is made where there is none. Raises CacheFolderError as it does."""
        folder = RecordFolder(path)
        return cls(folder, budget, secret=secret, namespace=namespace, model=model, shapes=shapes, writes=writes)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._records

    @property
    def writable(self) -> bool:
        return self._writer and not self._failing

    def touch(self, key: PageKey) -> None:
        with self._guard:
            entry = self._records.get(key)
            if entry is None:
                return
            self._records.move_to_end(key)
            now = self._clock()
            if now - entry.noted >= TOUCH_SECONDS:
                entry.noted = now
                self._to_note[key] = self._use()

    def store(self, key: PageKey, page: memoryview, *, group: int = 0, owner: bytes = b"") -> bool:
        """Writes a page's record; True when it is on disk (or has been already).

        Raises ValueError for a page, key or owner of another length than they have.
        """
        shape = self.shapes[group]
        if len(page) != shape.page_bytes:
            raise ValueError(f"a page of {len(page)} bytes, where the layout has {shape.page_bytes}")
        header = RecordHeader.make(key, self._namespace, owner, shape).pack()
        if not self.writable:
            return False
        if key in self._records:
            self.touch(key)
            return True
        if not self._make_room(shape.record_bytes):
            return False
        try:
            signatures = self._signer.sign(header, shape, page)
            with self._guard:
                used = self._use()
            self._folder.write(key, (header, signatures, page), used)
        except OSError as error:
            self._write_failed(error, shape.record_bytes)
            return False
        self._add(key, shape.record_bytes)
        return True

    def load(
        self, key: PageKey, into: memoryview, *, group: int = 0, heads: tuple[int, int] | None = None
    ) -> Miss | None:
        """Reads a page into a buffer of its size; None when it is right, else why there is none.

        heads: read only these kv heads, from the first to before the second, into a buffer of their bytes. After a miss
        the buffer holds anything.
        """
        shape = self.shapes[group]
        try:
            with self._folder.open(key) as (number, size):
                miss = self._read(number, size, key, into, shape, heads)
        except FileNotFoundError:
            miss = Miss.MISSING
        except OSError:
            miss = Miss.UNREADABLE
        if miss is not None:
            self._drop(key, miss)
        return miss

    def tend(self) -> None:
        """What a tier does now and then, called by one thread: notes last uses, and looks at the folder again after a
        failure, or whether it may write now, or what the writer has brought."""
        self._note_uses()
        if (self._failing or not self._writer) and self._clock() >= self._look_again:
            self._look()

    def statistics(self) -> DiskStatistics:
        with self._guard:
            return DiskStatistics(
                pages=len(self._records),
                bytes=self._bytes,
                budget=self._budget,
                stored=self._stored,
                evictions=self._evictions,
                failed_writes=self._failed_writes,
                misses={reason.value: number for reason, number in self._misses.items()},
                rejected=sum(number for reason, number in self._misses.items() if reason is not Miss.MISSING),
            )

    def close(self) -> None:
        """Notes the last uses and lets another server write; no call follows."""
        self._note_uses()
        self._folder.close()

    def _read(
        self, number: int, size: int, key: PageKey, into: memoryview, shape: PageShape, heads: tuple[int, int] | None
    ) -> Miss | None:
        prefix = bytearray(min(size, shape.prefix_bytes))
        if not self._folder.read(number, memoryview(prefix), 0):
            return Miss.TRUNCATED
        header = RecordHeader.parse(prefix)
        if header is None:
            return Miss.FOREIGN if len(prefix) == shape.prefix_bytes else Miss.TRUNCATED
        problem = header.problem(key, self._namespace, shape)
        if problem is not None:
            return problem
        if size != shape.record_bytes:
            return Miss.TRUNCATED if size < shape.record_bytes else Miss.FOREIGN
        first, behind = heads or (0, len(shape.segments))
        segments = shape.segments[first:behind]
        if not self._folder.read(number, into, shape.prefix_bytes + segments[0].start):
            return Miss.TRUNCATED
        start = segments[0].start
        parts = [into[part.start - start : part.stop - start] for part in segments]
        right = self._signer.verify(header.pack(), first, parts, shape.signatures_of(prefix, first, behind))
        return None if right else Miss.FORGED

    def _look(self) -> None:
        """Becomes the writer if it may, and takes the folder for what it now is."""
        self._look_again = self._clock() + BACK_OFF_SECONDS
        writer = self._may_write and self._folder.lock()
        if writer:
            self._folder.remove_unfinished()
            with contextlib.suppress(OSError):
                self._folder.name_model(self._namespace, self._model)
            self._rejected.clear()
        self._index()
        self._writer, self._failing = writer, False
        if writer:
            self._make_room(0)

    def _index(self) -> None:
        found = sorted(self._folder.scan(), key=lambda record: record.used)
        now = self._clock()
        # Made beforehand: the engine asks and touches meanwhile.
        records = OrderedDict(
            (record.key, _Entry(record.bytes, now - TOUCH_SECONDS))
            for record in found
            if record.key not in self._rejected
        )
        size = sum(entry.bytes for entry in records.values())
        with self._guard:
            self._records, self._bytes = records, size
            self._last_use = max(self._last_use, found[-1].used if found else 0)

    def _use(self) -> int:
        """The wall clock in nanoseconds, but later than all uses before."""
        self._last_use = max(self._last_use + 1, time.time_ns())
        return self._last_use

    def _make_room(self, size: int) -> bool:
        """Counts `size` bytes as used, after evicting what was used longest ago; False where they do not fit."""
        with self._guard:
            victims: list[PageKey] = []
            if size > self._budget:
                return False
            while self._records and self._bytes + size > self._budget:
                key, entry = self._records.popitem(last=False)
                self._bytes -= entry.bytes
                victims.append(key)
            self._evictions += len(victims)
            fits = self._bytes + size <= self._budget
            if fits:
                self._bytes += size
        # The disk may be slow, and the engine asks the index meanwhile.
        removed = [self._remove(key) for key in victims]
        if fits and not all(removed):
            with self._guard:
                self._bytes -= size
            return False
        return fits

    def _remove(self, key: PageKey) -> bool:
        try:
            self._folder.remove(key)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._write_failed(error, 0)
            return False
        return True

    def _add(self, key: PageKey, size: int) -> None:
        """Enters a record whose bytes are counted already."""
        with self._guard:
            older = self._records.pop(key, None)
            self._bytes -= older.bytes if older is not None else 0
            self._records[key] = _Entry(size, self._clock())
            self._stored += 1

    def _write_failed(self, error: OSError, reserved: int) -> None:
        with self._guard:
            self._bytes -= reserved
            self._failed_writes += 1
            if error.errno not in _OF_ONE_RECORD:
                self._failing = True
                self._look_again = self._clock() + BACK_OFF_SECONDS

    def _drop(self, key: PageKey, miss: Miss) -> None:
        """Takes a record that gave no page out of the index; one that is broken also from the disk."""
        with self._guard:
            self._misses[miss] += 1
            entry = self._records.pop(key, None)
            self._bytes -= entry.bytes if entry is not None else 0
            if miss is not Miss.MISSING and not self._writer:
                self._rejected.add(key)
        if miss in _BROKEN and self.writable:
            self._remove(key)

    def _note_uses(self) -> None:
        with self._guard:
            uses, self._to_note = self._to_note, {}
        if self._writer:
            for key, used in uses.items():
                with contextlib.suppress(OSError):
                    self._folder.touch(key, used)
