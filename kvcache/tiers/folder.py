"""What lies in a page folder, and clearing it: for people, without a server and without torch.

A server that runs on the folder goes on: records that vanish under it are misses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvcache.tiers.record import HEADER_BYTES, RecordHeader
from kvcache.tiers.record_folder import FoundRecord, RecordFolder


@dataclass(frozen=True, slots=True)
class NamespaceUsage:
    """One model's pages as one configuration computes them. `newest` is a wall-clock time in seconds.

    `namespace` is empty for records that say nothing of themselves; `model` is empty where its name was not noted.
    """

    namespace: bytes
    model: str
    pages: int
    bytes: int
    newest: float


@dataclass(frozen=True, slots=True)
class ClearResult:
    """What has been removed."""

    pages: int
    bytes: int


def disk_usage(folder: Path) -> tuple[NamespaceUsage, ...]:
    """The pages in the folder by namespace, the most recently used first; empty where there is no folder.

    Raises CacheFolderError for a folder that others may write to, or that is none.
    """
    if not folder.exists():
        return ()
    records = RecordFolder(folder, create=False)
    try:
        found: dict[bytes, list[FoundRecord]] = {}
        for record, header in _with_headers(records):
            found.setdefault(header.namespace if header else b"", []).append(record)
        usage = [
            NamespaceUsage(
                namespace,
                records.model_name(namespace) if namespace else "",
                len(group),
                sum(record.bytes for record in group),
                max(record.used for record in group) / 1e9,
            )
            for namespace, group in found.items()
        ]
        return tuple(sorted(usage, key=lambda one: -one.newest))
    finally:
        records.close()


def clear(folder: Path, namespace: bytes | None = None, owner: bytes | None = None) -> ClearResult:
    """Removes all records, or those of a namespace, of an owner, or of both. What cannot be removed is left.

    Raises CacheFolderError as `disk_usage`.
    """
    if not folder.exists():
        return ClearResult(0, 0)
    records = RecordFolder(folder, create=False)
    try:
        result = _remove(records, namespace, owner)
        if namespace is None and owner is None and records.lock():
            records.remove_unfinished()
        if owner is None:
            for one in records.namespaces() if namespace is None else [namespace]:
                records.forget_model(one)
        return result
    finally:
        records.close()


def _remove(records: RecordFolder, namespace: bytes | None, owner: bytes | None) -> ClearResult:
    pages = size = 0
    everything = namespace is None and owner is None
    for record, header in _with_headers(records):
        if everything or (header is not None and _matches(header, namespace, owner)):
            with suppress(OSError):
                records.remove(record.key)
                pages, size = pages + 1, size + record.bytes
    return ClearResult(pages, size)


def _matches(header: RecordHeader, namespace: bytes | None, owner: bytes | None) -> bool:
    return namespace in (None, header.namespace) and owner in (None, header.owner)


def _with_headers(records: RecordFolder) -> Iterator[tuple[FoundRecord, RecordHeader | None]]:
    """All records, each with what it says of itself, unverified."""
    for record in list(records.scan()):
        buffer = bytearray(HEADER_BYTES)
        header = None
        with suppress(OSError), records.open(record.key) as (number, _):
            if records.read(number, memoryview(buffer), 0):
                header = RecordHeader.parse(buffer)
        yield record, header
