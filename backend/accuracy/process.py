"""measure_accuracy: has a process of its own measure a model's KV formats, and follows it. No torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, BinaryIO, cast

import msgspec

from backend.accuracy.messages import AccuracyRequest, Measured, Measuring, Message, NotMeasured, receive
from backend.accuracy.report import AccuracyReport
from backend.engine_environment import engine_environment
from backend.errors import ShardwiseError

CHILD_COMMAND = (sys.executable, "-P", "-m", "backend.accuracy.child")

OnProgress = Callable[[str, int, int], None]


def measure_accuracy(
    request: AccuracyRequest, on_progress: OnProgress, command: Sequence[str] = CHILD_COMMAND
) -> AccuracyReport:
    """Blocks until the report is there; `on_progress(stage, done, total)` is called meanwhile and may raise to stop it.

    The process never outlives this call.

    Raises:
        ShardwiseError: what the process refused, or that it died.
    """
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            # A terminal's Ctrl+C is ours to hear: the child ends with this call.
            start_new_session=True,
            env=engine_environment(request.settings, os.environ),
        )
        try:
            last = _follow(child, request, on_progress)
        finally:
            child.kill()
            with child:
                pass  # closes the pipes and waits
        match last:
            case Measured(report=report):
                return report
            case NotMeasured():
                error = ShardwiseError(last.what, last.why, last.hint)
                error.code, error.exit_status = last.code, last.exit_status
                raise error
            case _:
                raise _died(child.returncode, complaints)


def _follow(child: subprocess.Popen[bytes], request: AccuracyRequest, on_progress: OnProgress) -> Message | None:
    """Hands progress on until the last message; None where there was none."""
    orders, answers = cast("BinaryIO", child.stdin), cast("BinaryIO", child.stdout)
    try:
        orders.write(msgspec.msgpack.encode(request))
        orders.close()
    except BrokenPipeError:
        return None
    while isinstance(message := receive(answers), Measuring):
        on_progress(message.stage, message.done, message.total)
    if message is not None:
        child.wait()
    return message


def _died(status: int, complaints: IO[bytes]) -> ShardwiseError:
    complaints.seek(0)
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    return ShardwiseError(
        "The measurement ended without an answer.",
        f"Its process left with status {status}" + (f": {lines[-1]}" if lines else "."),
        "If the machine ran out of memory, close other programs or use a smaller --kv-context.",
    )
