"""Moves one large file from the hub onto disk, going on from the byte where an earlier try ended.

huggingface_hub throws away what a process had received when it ended, so large files come through here.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import BinaryIO

from backend.errors import DownloadError
from backend.library.hub_errors import connection_error

_TRIES = 5
_TIMEOUT = 30.0


class TransferStoppedError(Exception):
    """Another part of the same download failed, so this one ends early."""


class Progress:
    """Bytes of a whole repository, summed over files that arrive side by side."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None]) -> None:
        self._lock, self._done, self._total, self._on_progress = Lock(), 0, total, on_progress

    def add(self, count: int) -> None:
        """Count more bytes; fewer where a file starts again. What the callback raises passes through."""
        with self._lock:
            self._done += count
            self._on_progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One file to fetch.

    Attributes:
        url: its address; a redirect is followed, without the token where it leads to another host.
        headers: for each request.
        partial: where its bytes gather; what lies there from before is gone on with.
        target: where it goes when it is whole.
        size, sha256: what it must be.
    """

    url: str
    headers: dict[str, str]
    partial: Path
    target: Path
    size: int
    sha256: str

    def run(self, progress: Progress, stop: Event, pause: float = 1.0) -> None:
        """Fetch the file. Raises DownloadError, TransferStoppedError, or what the hub's client and the disk raise."""
        if self.target.exists():
            progress.add(self.size)
            return
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("ab") as file:
            if file.tell() > self.size:
                file.truncate(0)
            kept = file.tell()
            progress.add(kept)
            self._gather(file, progress, stop, pause)
            digest = self._digest()
            if digest != self.sha256 and kept:
                # The bytes from before may be the damaged ones: once more without them.
                file.truncate(0)
                progress.add(-self.size)
                self._gather(file, progress, stop, pause)
                digest = self._digest()
        if digest != self.sha256:
            self.partial.unlink()
            raise DownloadError(
                f"{self.url} arrived damaged.",
                f"Its SHA-256 is {digest[:12]}… where {self.sha256[:12]}… belongs.",
                "Run the command again: this file starts anew.",
            )
        os.replace(self.partial, self.target)

    def _gather(self, file: BinaryIO, progress: Progress, stop: Event, pause: float) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        tries = _TRIES
        while True:
            # Seeking also writes out what is buffered.
            before = file.seek(0, os.SEEK_END)
            if before == self.size:
                return
            try:
                self._request(file, before, progress, stop)
            except HfHubHTTPError as error:
                if error.response.status_code < 500 or tries == 0:
                    raise
            except connection_error():
                if tries == 0:
                    raise
            # A try that brought bytes gives all tries back: only a dead line ends the download.
            tries = _TRIES if file.seek(0, os.SEEK_END) > before else tries - 1
            if tries < 0:
                raise DownloadError(f"{self.url} ends before its {self.size:,} bytes.", hint="Run the command again.")
            if file.tell() < self.size:
                time.sleep(pause)

    def _request(self, file: BinaryIO, begin: int, progress: Progress, stop: Event) -> None:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        # Compressed bytes could not be resumed.
        headers = {**self.headers, "Accept-Encoding": "identity", "Range": f"bytes={begin}-"}
        with get_session().stream(
            "GET", self.url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            if not _continues(response.status_code, response.headers.get("Content-Range", ""), begin):
                progress.add(-begin)
                file.truncate(0)
                begin = 0
            # As they come: with a chunk size, the bytes gathered for a chunk would be lost with the connection.
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise TransferStoppedError
                begin += len(chunk)
                if begin > self.size:
                    raise DownloadError(f"{self.url} sends more than its {self.size:,} bytes.")
                file.write(chunk)
                progress.add(len(chunk))

    def _digest(self) -> str:
        with self.partial.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _continues(status: int, content_range: str, begin: int) -> bool:
    """Whether an answer goes on where the file ends, as asked, rather than starting at its first byte."""
    return begin == 0 or (status == 206 and content_range.startswith(f"bytes {begin}-"))
