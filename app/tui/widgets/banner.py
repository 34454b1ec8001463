"""Banner: one line across the top that says what is wrong now, and goes when it is over."""

from __future__ import annotations

from textual.widgets import Static

from app.text_safety import clean_line


class Banner(Static):
    """Hidden until `say` is called with a text."""

    DEFAULT_CSS = """
    Banner {
        display: none;
        height: auto;
        max-height: 3;
        padding: 0 1;
        background: $warning-muted;
        color: $text-warning;
        &.-shown { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__("", id="banner", markup=False)
        self.text = ""

    def say(self, text: str) -> None:
        """Shows `text`; an empty one hides the banner."""
        if text != self.text:
            self.text = text
            self.update(clean_line(text, 400))
            self.set_class(bool(text), "-shown")
