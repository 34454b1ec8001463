"""What people are told once an engine cannot serve them, as pure functions. When that is so is for others to say."""

from __future__ import annotations

from pathlib import Path

from backend.errors import EngineUnavailableError, ShardwiseError
from backend.exit_status import without_pids


def refused(model: str, failure: ShardwiseError | None) -> EngineUnavailableError:
    """No request is taken: because of this failure, or, without one, because the server is shutting down."""
    if failure is not None:
        return EngineUnavailableError(f"The engine of {model} has failed", str(failure), "Start the server again.")
    return EngineUnavailableError(
        "The server is shutting down",
        "Requests that were running are finished first.",
        "Try again later.",
    )


def gave_up(deaths: int, cause: str, log_file: Path | None) -> EngineUnavailableError:
    """The engine died so often in a row that it is not started again."""
    where = f"Its own messages are in {log_file}." if log_file else "Its own messages are above."
    return EngineUnavailableError(
        f"The engine died {deaths} times in a row without bringing a token",
        f"The last time, {without_pids(cause)}.",
        where,
    )


def guilt(deaths: int, cause: str) -> str:
    """Why a request ends whose engines died this often while they ran it."""
    return f"The engine died {deaths} times while it ran this request ({without_pids(cause)})."
