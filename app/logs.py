"""Logs of the server process: for people on stderr, as JSON lines in a rotating file. Prompts and answers never.

Values of variables are left out of tracebacks, because a prompt may be among them.
"""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

import platformdirs
import structlog

FILE_BYTES = 4 * 1024 * 1024
OLD_FILES = 3


def log_folder() -> Path | None:
    """Where logs are, readable for their owner only; made where it is missing. None where nothing can be written."""
    folder = platformdirs.user_log_path("shardwise")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


class _PrivateRotatingFileHandler(RotatingFileHandler):
    """Makes its files readable for their owner only."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(descriptor, "a", encoding="utf-8")


def configure_logging(file: Path | None) -> None:
    """Sends structlog's and the libraries' records to stderr and, where one is given, to `file`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    for_people = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_formatter(shared, [for_people]))
    root = logging.getLogger()
    root.handlers = [console]
    if file is not None:
        lasting = _PrivateRotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=OLD_FILES)
        as_json = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        lasting.setFormatter(_formatter(shared, as_json))
        root.addHandler(lasting)
    root.setLevel(logging.INFO)
    # One line a request, or a step of uvicorn's own start, tells an operator nothing.
    for noisy in ("httpx", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _formatter(
    shared: list[structlog.typing.Processor], last: list[structlog.typing.Processor]
) -> structlog.stdlib.ProcessorFormatter:
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[drop, *last])
