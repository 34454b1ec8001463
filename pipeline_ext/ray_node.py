"""RayNode: one Ray node on this machine, started and ended by us, always within bounded time. On an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pipeline_ext.ray_node_process import GRACE, kill_session
from pipeline_ext.ray_settings import RayPorts, free_ports, own_environment, ray_environment

START_SECONDS = 45.0
_STARTED = "Ray runtime started"
# Ray's sockets lie below, and a socket's path has at most 107 bytes.
_ROOT = "/tmp"


class RayStartError(RuntimeError):
    """Ray did not start; says why."""


class RayNode:
    """Make it, `start` it once, `stop` it once. `ports` are of the running node."""

    def __init__(self, token: str, first_block: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sw-ray-", dir=_ROOT))  # 0700
        self.token_file = self._folder / "token"
        descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token)
        self._first_block = first_block
        self.ports = RayPorts(0)
        self._process: asyncio.subprocess.Process | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._up = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def start(self, arguments: Callable[[RayPorts, Path], list[str]]) -> None:
        """Raises RayStartError, after at most START_SECONDS (an address that is not this machine's hangs Ray)."""
        self.ports = await asyncio.to_thread(free_ports, self._first_block)
        command = [
            *(sys.executable, "-P", "-m", "pipeline_ext.ray_node_process", str(self._folder)),
            *arguments(self.ports, self._folder / "r"),
        ]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl+C in a terminal is for us; when Ray ends is ours to say.
            start_new_session=True,
            env=ray_environment(own_environment(), self.token_file),
        )
        self._reader = asyncio.create_task(self._listen(self._process))
        ended = asyncio.create_task(self._process.wait())
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait({ended, up}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            up.cancel()
        if not self._up.is_set():
            why = self._why() if self._process.returncode is not None else f"it was not up after {START_SECONDS:.0f} s"
            await self.stop()
            raise RayStartError(why)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> str:
        """Waits until the node has ended: why, as far as it said."""
        if self._process is not None:
            await self._process.wait()
        return self._why()

    async def stop(self) -> None:
        """Within a few seconds nothing of it is left: asked first, killed then."""
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE + 2):
                    await process.wait()
            if process.returncode is None:
                await asyncio.to_thread(kill_session, process.pid)
                await process.wait()
        if self._reader is not None:
            self._reader.cancel()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        while line := await process.stdout.read(4096):
            for part in line.decode(errors="replace").splitlines():
                if part.strip():
                    self._said.append(part.strip()[:300])
                if _STARTED in part:
                    self._up.set()

    def _why(self) -> str:
        said = [line for line in self._said if "rror" in line or "nable" in line]
        return (said or list(self._said) or ["it ended without a word"])[-1]
