"""A head and a peer with identities of one authority, and a tensor server in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.library.files import ModelFiles
from pipeline_ext.identity import Identity, head_identity, keep_certificate, server_context, sign, signing_request
from pipeline_ext.tensor_server import TensorServer

SECRET = b"of this engine"


def made_identities(folder: Path) -> tuple[Identity, Identity]:
    """The head's and a peer's."""
    head = head_identity(folder / "head")
    request = signing_request(folder / "peer")
    return head, keep_certificate(sign(request, head), head.authority.read_bytes(), folder / "peer")


@contextmanager
def served_tensors(
    files: ModelFiles, head: Identity, kind: type[TensorServer] = TensorServer
) -> Iterator[TensorServer]:
    server = kind(files, "127.0.0.1", server_context(head), SECRET)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()
