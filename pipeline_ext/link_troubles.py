"""LinkTroubles: which links broke, how often, and whether to act on it yet. A link's number is its sender's stage."""

from __future__ import annotations

from pipeline_ext.pipeline_limits import PipelineLimits


class LinkTroubles:
    """Of one pipeline."""

    def __init__(self, limits: PipelineLimits) -> None:
        self._limits = limits
        self._strikes: dict[int, int] = {}
        self._struck = float("-inf")
        self._broken: tuple[int, float] | None = None
        self.text = ""

    def broke(self, link: int, text: str, now: float) -> None:
        """A worker says so. The first one of an epoch counts: others break because of it."""
        if self._broken is None:
            self._broken, self.text = (link, now), text

    def due(self, now: float) -> int | None:
        """The link to act on, a moment after it broke: by then a dead worker would have been noticed as the cause."""
        if self._broken is None or now - self._broken[1] < self._limits.moment:
            return None
        return self._broken[0]

    def strike(self, link: int, now: float) -> int:
        """It broke again: how often it has, without a batch or a long time between."""
        if now - self._struck > self._limits.forget:
            self._strikes.clear()
        self._struck = now
        self._strikes[link] = self._strikes.get(link, 0) + 1
        return self._strikes[link]

    def clear(self) -> None:
        """An epoch is over; strikes are kept."""
        self._broken = None

    def forget(self) -> None:
        """A batch went through, so the strikes are over."""
        self._strikes.clear()
