"""StepBar: the wizard's steps with their keys, where a narrow terminal shows one at a time."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

# Key, step, name, and what it does.
STEPS = (
    ("f2", "machine", "Machine", "Which machine to plan for"),
    ("f3", "model", "Model", "Which model"),
    ("f4", "wishes", "Wishes", "Goal, context, users, formats, price"),
    ("f5", "plans", "Plans", "The plans, best first"),
)


class StepBar(Static):
    """One line; the step that is shown stands in brackets."""

    DEFAULT_CSS = """
    StepBar { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; }
    """

    step: reactive[str] = reactive(STEPS[0][1])

    def __init__(self) -> None:
        super().__init__("", markup=False)

    def watch_step(self) -> None:
        cells = [
            (f"[{key.upper()} {name}]", "bold $primary") if step == self.step else (f" {key.upper()} {name} ", "")
            for key, step, name, _ in STEPS
        ]
        self.update(Content("  ").join(Content.styled(text, style) for text, style in cells))
