"""DelayRelay: a Unix socket whose bytes arrive somewhere else a little later, both ways: a link of that latency."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path

CHUNK_BYTES = 1 << 20


class DelayRelay:
    """Listens at `path` until the process ends; whoever comes talks to `target`."""

    def __init__(self, path: Path, target: str, seconds: float) -> None:
        self._target, self._seconds = target, seconds
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.place = str(path)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            here, _ = self._listener.accept()
            there = socket.socket(socket.AF_UNIX)
            try:
                there.connect(self._target)
            except OSError:
                here.close()
                there.close()
                continue
            for source, sink in ((here, there), (there, here)):
                line: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._read, args=(source, line), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, line), daemon=True).start()

    def _read(self, source: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"?"
        while data:
            try:
                data = source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            line.put((time.monotonic() + self._seconds, data))

    def _write(self, sink: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            due, data = line.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            except OSError:
                return
