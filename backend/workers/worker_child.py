"""WorkerChild: one worker process as the engine holds it: spawned, spoken to, killed and reaped."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from backend.exit_status import describe_exit
from backend.frames import FrameReader, framed
from backend.process_log import open_log
from backend.workers.worker_messages import FromWorker, ToWorker, encoder, from_worker_decoder


class WorkerChild:
    """Made by `spawn`. `send` and what receives belong to the engine's thread, `pulse` to the one that watches.

    `kill` and `status` are safe from both.
    """

    def __init__(
        self, rank: int, process: subprocess.Popen[bytes], orders: socket.socket, pulse: socket.socket
    ) -> None:
        self.rank = rank
        self.pulse = pulse
        self._process = process
        self._orders = orders
        self._reader = FrameReader(orders)

    @classmethod
    def spawn(cls, rank: int, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> WorkerChild:
        """Starts `command` with the numbers of its two sockets appended. Its output goes to `log`, or where ours goes.

        It stays in our process group and session, with which it is killed, and dies with the thread that calls this.
        """
        orders, its_orders = socket.socketpair()
        pulse, its_pulse = socket.socketpair()
        try:
            with its_orders, its_pulse, open_log(log) as output:
                numbers = (its_orders.fileno(), its_pulse.fileno())
                process = subprocess.Popen(
                    [*command, *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=numbers,
                    env=environment,
                )
        except BaseException:
            orders.close()
            pulse.close()
            raise
        return cls(rank, process, orders, pulse)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"rank {self.rank} (pid {self.pid})"

    def fileno(self) -> int:
        """Readable when an answer is there, or the end."""
        return self._orders.fileno()

    def send(self, message: ToWorker) -> None:
        self.send_encoded(encoder.encode(message))

    def send_encoded(self, body: bytes) -> None:
        """Raises OSError where the worker has gone."""
        self._orders.sendall(framed(body))

    def receive(self) -> list[FromWorker] | None:
        """Its next answers, waiting for some bytes of them; None when it has gone."""
        try:
            if not self._reader.receive():
                return None
        except OSError:
            return None
        answers: list[FromWorker] = []
        while (body := self._reader.take()) is not None:
            answers.append(from_worker_decoder.decode(body))
        return answers

    def end_of(self, patience: float) -> str | None:
        """How it ended, as `describe_exit` says it, after waiting so many seconds; None while it lives."""
        try:
            return describe_exit(self._process.wait(patience))
        except subprocess.TimeoutExpired:
            return None

    @property
    def exit_status(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL; also right for one that is frozen or has gone already."""
        self._process.kill()

    def close(self, patience: float) -> None:
        """Lets it end, for so many seconds, then kills it, and reaps it."""
        self._orders.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        # One that is stuck inside a driver cannot be killed; it must not hold us up.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        self.pulse.close()
