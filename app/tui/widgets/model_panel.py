"""ModelPanel: choosing a model by searching what is offered, or by its name. Finding facts is the outside's."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from app.text_safety import clean, clean_line
from app.tui.fit import words
from app.tui.fit.offers import ModelOffer, is_name, line, search
from backend.errors import ShardwiseError
from backend.planner.fit.known_model import KnownModel


class SearchInput(Input):
    """The field over a list: down goes to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down", "app.focus_next", "To the list", show=False)]


class ModelPanel(Vertical):
    """What is chosen, a search field, and the models found."""

    DEFAULT_CSS = """
    ModelPanel {
        & > .chosen { height: auto; max-height: 6; margin: 0 0 1 0; }
        & > .problem { height: auto; color: $text-error; display: none; margin: 0 0 1 0; }
        & > OptionList { height: 1fr; border: none; padding: 0; background: transparent; overflow-x: hidden;
            scrollbar-size-vertical: 1; }
    }
    """

    class Chosen(Message):
        """The user wants to plan for this model."""

        def __init__(self, model: str) -> None:
            super().__init__()
            self.model = model

    def __init__(self) -> None:
        super().__init__(id="model", classes="pane")
        self._offers: tuple[ModelOffer, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static("no model chosen yet", classes="chosen", markup=False)
        yield Static("", classes="problem", markup=False)
        yield SearchInput(placeholder="search, or org/name, a folder, a .gguf file", id="search", compact=True)
        yield OptionList(id="offers", compact=True, markup=False)

    def on_mount(self) -> None:
        self.border_title = "F3 Model"

    def offer(self, offers: tuple[ModelOffer, ...]) -> None:
        self._offers = offers
        self._list(self.query_one(Input).value)

    def expect(self, model: str) -> None:
        """A model is being looked up."""
        self._say("")
        self.query_one(".chosen", Static).update(f"looking up {clean_line(model, 80)}…")

    def show(self, known: KnownModel) -> None:
        self._say("")
        self.query_one(".chosen", Static).update(_facts(known))

    def refuse(self, error: ShardwiseError, chosen: KnownModel | None) -> None:
        """Why a model cannot be planned for, with its fix; the one chosen before stays."""
        self.query_one(".chosen", Static).update(_facts(chosen) if chosen else "no model chosen yet")
        self._say(clean(str(error)))

    def _say(self, problem: str) -> None:
        static = self.query_one(".problem", Static)
        static.update(problem)
        static.display = bool(problem)

    def on_resize(self) -> None:
        self._list(self.query_one(Input).value)

    def _list(self, text: str) -> None:
        offers = self.query_one(OptionList)
        found = search(self._offers, text)
        room = max(20, offers.size.width - 2)
        offers.clear_options()
        offers.add_options(Option(line(each, room), id=each.name) for each in found)
        typed = text.strip()
        if is_name(typed) and all(each.name != typed for each in found):
            offers.add_option(Option(f"look up {clean_line(typed, 60)}", id=typed))
        offers.highlighted = 0 if offers.option_count else None

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        self._list(event.value)

    @on(Input.Submitted)
    def _first(self, event: Input.Submitted) -> None:
        event.stop()
        offers = self.query_one(OptionList)
        if offers.option_count:
            self._choose(offers.get_option_at_index(offers.highlighted or 0).id)
        elif event.value.strip():
            self._choose(event.value.strip())

    @on(OptionList.OptionSelected)
    def _listed(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._choose(event.option.id)

    def _choose(self, model: str | None) -> None:
        if model:
            self.post_message(self.Chosen(model))


def _facts(known: KnownModel) -> Content:
    """The model in a few lines: size, shape, where this is known from, and what stands against serving it."""
    facts = known.facts
    total = facts.parameters + known.other_parameters
    layers = len(facts.layers) + sum(states.count for states in known.states)
    stored = f", stored as {words.memory(known.stored.bytes)} ({known.stored.packing})" if known.stored.bytes else ""
    experts = f", {facts.active_experts} experts a token" if facts.active_experts else ""
    parts: list[Content | tuple[str, str] | str] = [
        (clean_line(known.name, 120), "bold"),
        f"\n{words.parameters(total)} parameters, {words.memory(2 * total)} at 16 bits{stored}",
        f"\n{layers} layers{experts}, made for {words.tokens(facts.max_positions)} positions",
        (f"\nfrom {clean_line(known.source, 300)}" if known.source else "", "$text-muted"),
        (f"\n! {clean(known.unserved)}" if known.unserved else "", "$text-warning"),
    ]
    return Content.assemble(*parts)
