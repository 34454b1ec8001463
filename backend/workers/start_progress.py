"""StartProgress: the starts of several ranks as one: the slowest's stage, and the sum of what is done in it. Pure."""

from __future__ import annotations

from backend.workers.worker_messages import Loading

STAGES = ("read", "fetch", "load", "pack", "warm up")


class StartProgress:
    """Fed with what each rank reports."""

    def __init__(self, ranks: int) -> None:
        self._stages: list[int] = [0] * ranks
        self._totals: list[dict[str, tuple[int, int]]] = [{} for _ in range(ranks)]

    def report(self, rank: int, loading: Loading) -> Loading:
        """What all ranks together have done, after this. A stage that a rank has behind it counts as done."""
        if loading.stage in STAGES:
            self._stages[rank] = STAGES.index(loading.stage)
            self._totals[rank][loading.stage] = loading.done, loading.total
        slowest = min(self._stages)
        stage = STAGES[slowest]
        parts = [totals.get(stage, (0, 0)) for totals in self._totals]
        done = sum(total if at > slowest else part for at, (part, total) in zip(self._stages, parts, strict=True))
        return Loading(stage, done, sum(total for _, total in parts))
