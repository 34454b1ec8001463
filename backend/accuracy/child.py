"""The measuring process: `python -m backend.accuracy.child`. A request on standard input, messages on standard output.

A process of its own, because who asks (the command line, the terminal UI) never loads torch, and may stop waiting.
"""

from __future__ import annotations

import os
import sys
import time
from typing import BinaryIO

import msgspec

from backend.accuracy.messages import AccuracyRequest, Measured, Measuring, NotMeasured, send
from backend.errors import ShardwiseError
from backend.parentage import die_with_parent

PROGRESS_SECONDS = 0.1


class Teller:
    """Tells each stage's beginning and end, and ten times a second what is between."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._stage, self._told = file, "", 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._told < PROGRESS_SECONDS and (total == 0 or done < total):
            return
        self._stage, self._told = stage, now
        send(self._file, Measuring(stage, done, total))


def main() -> None:
    die_with_parent()
    # What a library prints must not come between our messages.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=AccuracyRequest)
        teller = Teller(answers)
        teller.tell("read", 0, 0)
        try:
            from backend.accuracy.measure_model import measure_model

            send(answers, Measured(measure_model(request, teller.tell)))
        except ShardwiseError as error:
            send(answers, NotMeasured(error.what, error.why, error.hint, error.code, error.exit_status))


if __name__ == "__main__":
    main()
