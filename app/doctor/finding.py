"""Finding: one thing that `doctor` looked at."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Status = Literal["ok", "note", "warning", "failure"]


class Finding(Struct, frozen=True):
    """What was found, and what to do about it.

    Attributes:
        area: what it is about, one word or two.
        status: ok; note (a limit, not a fault); warning (serves, but worse); failure (cannot serve).
        what: one sentence.
        fix: what to do; empty where nothing needs doing.
    """

    area: str
    status: Status
    what: str
    fix: str = ""
