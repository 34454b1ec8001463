"""RankOptions: how a test wants its worker processes to behave; travels on the processes' command line."""

from __future__ import annotations

import sys
from enum import IntEnum

import msgspec

from kvcache.layout import Keeps, LayerCache

LAYERS = (LayerCache(Keeps.FULL, None, 1, 2, 2),)


class Trouble(IntEnum):
    """Prompt tokens that make trouble when they are computed: on rank 1, while rank 0 waits for it, unless said."""

    KILL = 1000
    FREEZE = 1001
    ALL_FAIL = 1002
    ONE_FAILS_IN_STEP = 1003  # rank 0, behind all collectives
    ONE_FAILS_OUT_OF_STEP = 1004  # and nobody waits
    ONE_FAILS_OTHERS_HANG = 1005
    LOST = 1006
    BREAKS_OFF = 1007  # rank 0 fails for the sake of rank 1, which is killed a moment later


class RankOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The `_at_start` ones name ranks. `empty`: a model that does nothing. Times in seconds."""

    refuse_at_start: int | None = None
    crash_at_start: int | None = None
    hang_at_start: tuple[int, ...] | None = None
    step_seconds: float = 0.0
    empty: bool = False

    def command(self) -> tuple[str, ...]:
        """What Workers' `command` has to be."""
        return (sys.executable, "-P", "-m", "tests.fakes.rank_main", msgspec.json.encode(self).decode())
