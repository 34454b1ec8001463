"""WishesPanel: goal, context, users, engine, formats and price; each change is posted at once."""

from __future__ import annotations

from dataclasses import replace

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Label, Static

from app.tui.fit import words
from app.tui.fit.wishes import ENGINES, GOALS, KV_FORMATS, USERS, WEIGHTS, Wishes, contexts
from app.tui.widgets.choice import Choice
from app.tui.widgets.slider import Slider

_MADE_FOR = 131_072
_DEFAULT_CONTEXT = 8192


class WishesPanel(Vertical):
    """Sliders and choices in one column, driven by arrow keys."""

    DEFAULT_CSS = """
    WishesPanel {
        height: auto;
        & > Horizontal { height: 1; }
        & > Horizontal > Label { width: 11; padding: 0 0 0 2; }
        & > Horizontal > Input { width: 1fr; }
        & > .problem { color: $text-error; height: auto; display: none; }
    }
    """

    class Changed(Message):
        """The user wishes something else now."""

        def __init__(self, wishes: Wishes) -> None:
            super().__init__()
            self.wishes = wishes

    def __init__(self, wishes: Wishes) -> None:
        super().__init__(id="wishes", classes="pane")
        self._wishes = wishes
        self._contexts = contexts(_MADE_FOR)

    def compose(self) -> ComposeResult:
        wishes = self._wishes
        yield Choice("goal", GOALS, wishes.goal, id="goal", tooltip="What plans are ranked by")
        yield Slider("context", ("",), id="context", tooltip="Tokens of one user's prompt and answer")
        yield Slider("users", ("",), id="users", tooltip="Users that are answered at the same time")
        yield Choice("engine", ENGINES, wishes.engine, id="engine", tooltip="Whose memory and speed are computed")
        yield Choice("weights", WEIGHTS, wishes.weights, id="weights", tooltip="How weights may be stored")
        yield Choice("KV", KV_FORMATS, wishes.kv_format, id="kv", tooltip="How keys and values may be stored")
        with Horizontal():
            yield Label("$/GPU h")
            yield Input(
                "" if wishes.price is None else f"{wishes.price:g}",
                id="price",
                placeholder="the table's price",
                compact=True,
                tooltip="Dollars for one GPU and hour",
            )
        yield Static("", classes="problem", markup=False)

    def on_mount(self) -> None:
        self.border_title = "F4 Wishes"
        self.show(self._wishes, _MADE_FOR)

    def show(self, wishes: Wishes, longest: int) -> None:
        """Sets every control, without a message. `longest`: positions that the model was made for."""
        self._wishes = wishes
        wanted = min(wishes.context or _DEFAULT_CONTEXT, longest)
        self._contexts = tuple(sorted({*contexts(longest), wanted}))
        users = self._users = tuple(sorted({*USERS, wishes.users}))
        self.query_one("#goal", Choice).set(wishes.goal)
        self._slider("context").set([words.tokens(stop) for stop in self._contexts], self._contexts.index(wanted))
        self._slider("users").set([f"{stop:,}" for stop in users], users.index(wishes.users))
        self.query_one("#engine", Choice).set(wishes.engine)
        self.query_one("#weights", Choice).set(wishes.weights)
        self.query_one("#kv", Choice).set(wishes.kv_format)

    def _slider(self, name: str) -> Slider:
        return self.query_one(f"#{name}", Slider)

    @on(Slider.Changed)
    def _slid(self, event: Slider.Changed) -> None:
        event.stop()
        if event.slider.id == "context":
            self._change(replace(self._wishes, context=self._contexts[event.index]))
        else:
            self._change(replace(self._wishes, users=self._users[event.index]))

    @on(Choice.Changed)
    def _chose(self, event: Choice.Changed) -> None:
        event.stop()
        field = {"goal": "goal", "engine": "engine", "weights": "weights", "kv": "kv_format"}[event.choice.id or ""]
        self._change(replace(self._wishes, **{field: event.value}))  # type: ignore[arg-type]

    @on(Input.Changed)
    def _priced(self, event: Input.Changed) -> None:
        event.stop()
        problem = self.query_one(".problem", Static)
        text = event.value.strip().lstrip("$")
        try:
            price = float(text) if text else None
            bad = price is not None and not 0 < price < 10_000
        except ValueError:
            price, bad = None, True
        problem.display = bad
        problem.update("  Price: dollars for one GPU and hour, such as 2.49" if bad else "")
        if not bad:
            self._change(replace(self._wishes, price=price))

    @on(Input.Submitted)
    def _next(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()

    def _change(self, wishes: Wishes) -> None:
        if wishes != self._wishes:
            self._wishes = wishes
            self.post_message(self.Changed(wishes))
