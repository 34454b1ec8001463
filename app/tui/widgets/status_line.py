"""StatusLine: the model, the pace of its last answer and how full the context is, in one line."""

from __future__ import annotations

from textual.reactive import reactive
from textual.widgets import Static

from app.client import AnswerStatistics
from app.text_safety import clean_line
from app.tui import format as figures


class StatusLine(Static):
    """One line above the footer; what does not fit is left out from the right."""

    DEFAULT_CSS = """
    StatusLine {
        height: 1;
        padding: 0 1;
        background: $panel;
        color: $foreground;
        text-wrap: nowrap;
        text-overflow: ellipsis;
    }
    """

    model: reactive[str] = reactive("")
    fallback: reactive[str] = reactive("")
    activity: reactive[str] = reactive("")
    context: reactive[int | None] = reactive(None)
    cache: reactive[str] = reactive("")
    unsaved: reactive[bool] = reactive(False)
    statistics: reactive[AnswerStatistics] = reactive(AnswerStatistics)

    def __init__(self) -> None:
        super().__init__("", id="status", markup=False)

    def render_line_text(self) -> str:
        """The line as text, without its styling."""
        parts = [clean_line(self.model, 40) or "no model"]
        if self.fallback:
            parts = [f"{clean_line(self.fallback, 40)} for {parts[0]}"]
        if self.activity:
            parts.append(self.activity)
        if self.unsaved:
            parts.append("chat not saved")
        figure = self.statistics
        if figure.tokens_per_second is not None:
            parts.append(f"{figure.tokens_per_second:.1f} tok/s")
        if figure.time_to_first_token is not None:
            parts.append(f"TTFT {figures.seconds(figure.time_to_first_token)}")
        if self.context:
            used = (figure.prompt_tokens or 0) + (figure.completion_tokens or 0)
            parts.append(f"context {figures.meter(used, self.context)} {used:,}/{self.context:,}")
        if self.cache:
            parts.append(self.cache)
        return " · ".join(parts)

    def _refresh_text(self) -> None:
        self.update(self.render_line_text())

    def watch_model(self) -> None:
        self._refresh_text()

    def watch_fallback(self) -> None:
        self._refresh_text()

    def watch_activity(self) -> None:
        self._refresh_text()

    def watch_context(self) -> None:
        self._refresh_text()

    def watch_cache(self) -> None:
        self._refresh_text()

    def watch_unsaved(self) -> None:
        self._refresh_text()

    def watch_statistics(self) -> None:
        self._refresh_text()
