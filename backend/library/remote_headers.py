"""Headers of weight files that lie on the hub, by HTTP range requests: never the weights that follow them.

Public: remote_tensors(repository, shards), remote_gguf(repository, file).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backend.errors import BrokenModelError
from backend.library.gguf_header import GgufHeader, read_gguf_header
from backend.library.header import TensorEntry, broken
from backend.library.hub import RemoteFile, Repository
from backend.library.safetensors_header import header_length, parse_safetensors_header

# Most headers fit into what is asked for first.
_FIRST = 1 << 16
# A GGUF file's vocabulary lies before its tensors' names: some megabytes, of the largest ones some ten.
_GGUF_FIRST, _GGUF_MOST = 4 << 20, 64 << 20
_SIDE_BY_SIDE = 8
_SECONDS = 30.0


def remote_tensors(repository: Repository, shards: Sequence[str]) -> tuple[TensorEntry, ...]:
    """All tensors of the repository's safetensors files.

    Raises BrokenModelError for a header that contradicts itself, and what huggingface_hub raises for a connection.
    """
    files = [repository.files[shard] for shard in shards]
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="header") as pool:
        parts = list(pool.map(lambda file: _tensors(repository, file), files))
    return tuple(tensor for part in parts for tensor in part)


def remote_gguf(repository: Repository, file: RemoteFile) -> GgufHeader:
    """The header of one of the repository's GGUF files. Raises as `remote_tensors`, and UnsupportedModelError."""
    with tempfile.TemporaryDirectory() as folder:
        # As long as the file on the hub, and empty beyond its beginning: the reader checks that all of it has room.
        path = Path(folder) / Path(file.name).name
        have, wanted = 0, _GGUF_FIRST
        with path.open("wb") as copy:
            copy.truncate(file.size)
        while True:
            with path.open("r+b") as copy:
                copy.seek(have)
                copy.write(_range(repository, file, have, wanted))
            have = min(wanted, file.size)
            header = _complete(path, have, have >= min(_GGUF_MOST, file.size))
            if header is not None:
                return header
            wanted *= 4


def _complete(path: Path, have: int, last: bool) -> GgufHeader | None:
    """The header, if it lies within the bytes that have come; None if it may go on behind them."""
    try:
        header = read_gguf_header(path)
    except BrokenModelError:
        if last:
            raise
        return None
    start = min((tensor.start for tensor in header.tensors), default=0)
    if start > have and last:
        raise broken(path.name, f"Its header has more than {_GGUF_MOST:,} bytes.")
    return header if start <= have else None


def _tensors(repository: Repository, file: RemoteFile) -> tuple[TensorEntry, ...]:
    place = f"{repository.name.repository}/{file.name}"
    text = _range(repository, file, 0, _FIRST)
    if len(text) < 8:
        raise broken(place, f"It has {len(text)} bytes, fewer than the 8 of its header's length.")
    end = 8 + header_length(place, text[:8], file.size)
    if end > len(text):
        text += _range(repository, file, len(text), end)
    return parse_safetensors_header(place, text[:8], text[8:end], file.size)


def _range(repository: Repository, file: RemoteFile, begin: int, end: int) -> bytes:
    """Bytes of the file from `begin` to `end`, or to its own end. A server that sends more is not listened to."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    end = min(end, file.size)
    if begin >= end:
        return b""
    url = hf_hub_url(repository.name.repository, file.name, revision=repository.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=_SECONDS, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else begin
        text = bytearray()
        for part in response.iter_bytes():
            text += part
            if len(text) >= skip + end - begin:
                break
    if len(text) < skip + end - begin:
        raise broken(f"{repository.name.repository}/{file.name}", "The hub sends fewer bytes than it says there are.")
    return bytes(text[skip : skip + end - begin])
