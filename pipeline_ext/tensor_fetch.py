"""obtain: the files from which a stage loads: this machine's own where it has the model, else exactly its tensors,
fetched from a machine that has them. The folder they come to is `fetched_model`'s, the line `tensor_line`'s.
"""

from __future__ import annotations

import errno
import hashlib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from backend.errors import DownloadError
from backend.layer_span import LayerSpan
from backend.library.atomic import disk_full, require_space
from backend.library.files import ModelFiles
from backend.library.header import TensorEntry
from backend.workers.rank_work import OnProgress
from backend.workers.worker_messages import Load
from pipeline_ext.fetched_model import FetchedModel, locked
from pipeline_ext.identity import Identity, IdentityError, peer_folder, read_identity
from pipeline_ext.range_set import RangeSet
from pipeline_ext.tensor_journal import JournalLine
from pipeline_ext.tensor_line import DeniedError, TensorLine, WrongPieceError
from pipeline_ext.tensor_messages import MOST_RANGE_BYTES, Ask
from pipeline_ext.tensor_offer import TensorOffer, decode_offer, fetched_home, recognized, same_config

STAGE = "fetch"
# Breaks of the line in a row without a range between them, and wrong versions of one range.
MOST_BREAKS = 6
MOST_WRONG = 3
_FIRST_PAUSE = 0.25
_SPARE_BYTES = 16 << 20

# For the files of a model and a span: the tensors that the stage reads, by the file's path.
StageTensors = Callable[[ModelFiles, LayerSpan], Mapping[str, tuple[TensorEntry, ...]]]


class TensorFetchError(DownloadError):
    """A stage's tensors could not be fetched; what has arrived is kept."""


def obtain(
    load: Load,
    span: LayerSpan,
    offer: bytes,
    secret: bytes,
    on_progress: OnProgress,
    identity: Identity | None = None,
    tensors: StageTensors | None = None,
) -> ModelFiles:
    """The files to load this stage from; blocks while they arrive, after which nothing needs the line any more.

    Called by each worker before it loads; those of one machine take turns, and who comes later finds all here.

    Args:
        offer: of LoadStage; empty where the worker runs beside the engine.
        identity: of this machine; None reads it where joining put it.
        tensors: what a stage reads; None asks the model itself.

    Raises:
        ShardwiseError: a broken offer, no room on the disk, no line or a server that refuses or sends wrong bytes.
    """
    if not offer:
        return load.settings.files
    offered = decode_offer(offer)
    own = recognized(offered)
    if own is not None and same_config(offered, own):
        return replace(own, name=offered.model)
    identity = identity or read_identity(peer_folder())
    if identity is None:
        raise IdentityError("This machine has not joined a cluster", "It has no certificate to fetch tensors with.")
    try:
        with locked(offered, lambda: on_progress(STAGE, 0, 0)) as model:
            return _fetched(
                _Fetch(offered, model, identity, secret, on_progress), own, span, tensors or _stage_tensors()
            )
    except OSError as error:
        raise _cannot_keep(offered, error, 0) from None


def _fetched(fetch: _Fetch, own: ModelFiles | None, span: LayerSpan, tensors: StageTensors) -> ModelFiles:
    """In an order in which each says what the next needs: config, headers, tensors."""
    fetch.texts()
    files = fetch.model.files
    if own is not None:
        # The same weights, but another config: all stages have to obey one.
        return replace(own, name=files.name, folder=files.folder)
    fetch.headers()
    fetch.tensors(tensors(files, span))
    return files


def _stage_tensors() -> StageTensors:
    from backend.surgery.stage_tensors import stage_tensors

    return stage_tensors


class _Fetch:
    """One pass over what is missing; on whatever breaks, it goes on where it was, a bounded number of times."""

    def __init__(
        self, offer: TensorOffer, model: FetchedModel, identity: Identity, secret: bytes, on_progress: OnProgress
    ) -> None:
        self.offer, self.model = offer, model
        self._identity, self._secret, self._on_progress = identity, secret, on_progress
        self._wrong: Counter[Ask] = Counter()

    def texts(self) -> None:
        """Config and tokenizer, whole."""
        first = len(self.offer.weights)
        self._whole({first + count: text.size for count, text in enumerate(self.offer.texts)})
        for count, text in enumerate(self.offer.texts):
            self._check(first + count, text.size, text.sha256)

    def headers(self) -> None:
        """What stands before the first tensor of each weight file."""
        self._whole({number: file.header for number, file in enumerate(self.offer.weights)})
        for number, file in enumerate(self.offer.weights):
            self._check(number, file.header, file.header_sha256)

    def tensors(self, wanted: Mapping[str, tuple[TensorEntry, ...]]) -> None:
        """These tensors, by path."""
        numbers = {path: number for number, path in enumerate(self.model.files.weights)}
        ranges = {
            numbers[path]: RangeSet((one.start, one.start + one.bytes) for one in entries)
            for path, entries in wanted.items()
        }
        self._run(ranges)

    def _whole(self, sizes: Mapping[int, int]) -> None:
        self._run({number: RangeSet([(0, size)]) for number, size in sizes.items()})

    def _check(self, file: int, count: int, expected: bytes) -> None:
        """That the first bytes of a file are those of the offer, which came another way than they."""
        with self.model.path(file).open("rb") as source:
            if hashlib.sha256(source.read(count)).digest() == expected:
                return
        self.model.forget(file)
        raise TensorFetchError(
            f"{self.model.path(file).name} of {self.offer.model} is not what was offered",
            "It has changed there since the engine started, or was sent wrong.",
            "Start the server again.",
        )

    def _run(self, wanted: Mapping[int, RangeSet]) -> None:
        """Fetches what is missing of these ranges, by number of file."""
        total = sum(ranges.bytes for ranges in wanted.values())
        needed = self._missing_bytes(wanted)
        self._on_progress(STAGE, total - needed, total)
        if not needed:
            return
        require_space(fetched_home(), needed + _SPARE_BYTES, f"this stage of {self.offer.model}")
        breaks = 0
        while self._missing_bytes(wanted):
            before = self._missing_bytes(wanted)
            cause = self._attempt(wanted, total)
            if cause is None:
                continue
            breaks = breaks + 1 if self._missing_bytes(wanted) == before else 1
            if breaks >= MOST_BREAKS:
                raise self._failed(f"{self.offer.address}: {cause}")
            time.sleep(_FIRST_PAUSE * 2.0 ** (breaks - 1))

    def _missing_bytes(self, wanted: Mapping[int, RangeSet]) -> int:
        return sum(self.model.missing(file, ranges).bytes for file, ranges in wanted.items())

    def _attempt(self, wanted: Mapping[int, RangeSet], total: int) -> str | None:
        """Fetches over one line; why that broke, or None where all has come. Raises TensorFetchError."""
        done = total - self._missing_bytes(wanted)
        asks = list(self._asks(wanted))
        try:
            line = TensorLine(self.offer.address, self.offer.machine, self._identity, self._secret)
        except ssl.SSLCertVerificationError as error:
            raise self._failed(f"{self.offer.address} is not who it should be ({error.verify_message}).") from None
        except DeniedError as error:
            raise self._failed(f"The server refuses: {error}.") from None
        except (OSError, ValueError) as error:
            return str(error)
        try:
            for piece, data in line.fetch(asks):
                self._keep(piece, data, total - done)
                done += piece.length
                self._on_progress(STAGE, done, total)
        except WrongPieceError as error:
            self._count_wrong(error)
            return str(error)
        except DeniedError as error:
            raise self._failed(f"The server refuses: {error}.") from None
        except OSError as error:
            return str(error)
        finally:
            line.close()
        return None

    def _asks(self, wanted: Mapping[int, RangeSet]) -> Iterator[Ask]:
        for file, ranges in wanted.items():
            for first, stop in self.model.missing(file, ranges).pieces(MOST_RANGE_BYTES):
                yield Ask(file, first, stop - first)

    def _keep(self, piece: JournalLine, data: bytes | bytearray, left: int) -> None:
        try:
            self.model.keep(piece, data)
        except OSError as error:
            raise _cannot_keep(self.offer, error, left) from None

    def _count_wrong(self, error: WrongPieceError) -> None:
        ask = error.ask
        self._wrong[ask] += 1
        if self._wrong[ask] >= MOST_WRONG:
            raise self._failed(
                f"Bytes {ask.start:,} to {ask.start + ask.length:,} of {self.model.path(ask.file).name} came wrong "
                f"{MOST_WRONG} times from {self.offer.address}: {error}."
            )

    def _failed(self, why: str) -> TensorFetchError:
        return TensorFetchError(
            f"The tensors of {self.offer.model} cannot be fetched", why, "What has arrived is kept for the next time."
        )


def _cannot_keep(offer: TensorOffer, error: OSError, left: int) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(f"this stage of {offer.model}", Path(fetched_home()), left)
    return TensorFetchError(f"The tensors of {offer.model} cannot be kept", f"{fetched_home()}: {error}.")
