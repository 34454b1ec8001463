"""Record: one page on disk as bytes: a header, a signature per kv head, and the page. Files are RecordFolder's.

    header       112 bytes: magic, version, shape, key, namespace, owner
    signatures    32 bytes for each segment
    page         [kv head 0][kv head 1]...[rest]

A segment is one kv head's bytes, and what the page has behind its heads. Each is signed with the header and its own
index, so a rank that needs some heads reads and verifies just those, and no segment stands for another.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from kvcache.layout import CacheGroup, CacheLayout
from kvcache.transfer import PageKey

MAGIC = b"SWKVPAGE"
VERSION = 1
KEY_BYTES = NAMESPACE_BYTES = SIGNATURE_BYTES = 32
OWNER_BYTES = 16
NOBODY = bytes(OWNER_BYTES)
_FIELDS = struct.Struct("<8sIIQQ32s32s16s")
HEADER_BYTES = _FIELDS.size
_INDEX = struct.Struct("<I")


class Miss(Enum):
    """Why a record gave no page.

    MISSING: it is not there. UNREADABLE: the system gave an error, or it is no file. TRUNCATED: shorter than its page.
    FOREIGN: of another format, version, namespace or shape. MISPLACED: of another key than its name. FORGED: its
    signature is wrong: bytes have changed, or another installation wrote it.
    """

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    FOREIGN = "foreign"
    MISPLACED = "misplaced"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class PageShape:
    """How a page's bytes are split: `heads` times `head_bytes`, then the rest of `page_bytes`."""

    heads: int
    head_bytes: int
    page_bytes: int

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_bytes < 1 or self.heads * self.head_bytes > self.page_bytes:
            raise ValueError(f"a page of {self.page_bytes} bytes has no {self.heads} heads of {self.head_bytes}")

    @classmethod
    def of(cls, layout: CacheLayout, group: CacheGroup) -> PageShape:
        return cls(group.layer.kv_heads, layout.head_bytes(group), layout.page_bytes)

    @property
    def segments(self) -> tuple[range, ...]:
        """The byte range of each segment, in order."""
        ends = [*range(0, self.heads * self.head_bytes + 1, self.head_bytes)]
        if ends[-1] < self.page_bytes:
            ends.append(self.page_bytes)
        return tuple(range(start, end) for start, end in pairwise(ends))

    @property
    def prefix_bytes(self) -> int:
        """Where the page begins in its record."""
        return HEADER_BYTES + SIGNATURE_BYTES * len(self.segments)

    @property
    def record_bytes(self) -> int:
        return self.prefix_bytes + self.page_bytes

    def signatures_of(self, prefix: bytearray, first: int, behind: int) -> bytes:
        """The signatures of the segments from `first` to before `behind`, in a record's first bytes."""
        return bytes(prefix[HEADER_BYTES + SIGNATURE_BYTES * first : HEADER_BYTES + SIGNATURE_BYTES * behind])


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a record says of itself; true only where a signature over it is right."""

    key: PageKey
    namespace: bytes
    owner: bytes
    heads: int
    head_bytes: int
    page_bytes: int

    @classmethod
    def make(cls, key: PageKey, namespace: bytes, owner: bytes, shape: PageShape) -> RecordHeader:
        """Raises ValueError for a key, namespace or owner of another length than a record has room for."""
        owner = owner or NOBODY
        if (len(key), len(namespace), len(owner)) != (KEY_BYTES, NAMESPACE_BYTES, OWNER_BYTES):
            raise ValueError(f"a key has {KEY_BYTES} bytes, a namespace {NAMESPACE_BYTES}, an owner {OWNER_BYTES} or 0")
        return cls(key, namespace, owner, shape.heads, shape.head_bytes, shape.page_bytes)

    @classmethod
    def parse(cls, data: bytes | bytearray) -> RecordHeader | None:
        """None unless the first bytes are a header of this format and version."""
        if len(data) < HEADER_BYTES:
            return None
        magic, version, heads, page_bytes, head_bytes, key, namespace, owner = _FIELDS.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            return None
        return cls(key, namespace, owner, heads, head_bytes, page_bytes)

    def pack(self) -> bytes:
        return _FIELDS.pack(
            MAGIC, VERSION, self.heads, self.page_bytes, self.head_bytes, self.key, self.namespace, self.owner
        )

    def problem(self, key: PageKey, namespace: bytes, shape: PageShape) -> Miss | None:
        """Why this is not the record that was wanted."""
        if self.namespace != namespace:
            return Miss.FOREIGN
        if self.key != key:
            return Miss.MISPLACED
        same_shape = (self.heads, self.head_bytes, self.page_bytes) == (shape.heads, shape.head_bytes, shape.page_bytes)
        return None if same_shape else Miss.FOREIGN


class Signer:
    """Signs segments of pages with the installation's secret: HMAC-SHA256 over header, segment index and bytes.

    Works beside other threads: the interpreter's lock is free while bytes are hashed.
    """

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError for a secret that protects nothing."""
        if len(secret) < 16:
            raise ValueError(f"a secret of {len(secret)} bytes signs no pages; it needs at least 16")
        self._secret = secret

    def sign(self, header: bytes, shape: PageShape, page: memoryview) -> bytes:
        """The signatures of all segments of a page, one behind the other."""
        parts = (page[part.start : part.stop] for part in shape.segments)
        return b"".join(self._signatures(header, 0, parts))

    def verify(self, header: bytes, first: int, segments: list[memoryview], signatures: bytes) -> bool:
        """Whether these segments, from index `first` on, have exactly these signatures."""
        wanted = b"".join(self._signatures(header, first, iter(segments)))
        return hmac.compare_digest(wanted, signatures)

    def _signatures(self, header: bytes, first: int, parts: Iterator[memoryview]) -> Iterator[bytes]:
        begun = hmac.new(self._secret, header, "sha256")
        for index, part in enumerate(parts, first):
            one = begun.copy()
            one.update(_INDEX.pack(index))
            one.update(part)
            yield one.digest()
