"""MessageView: one message of the chat; an answer grows in it as Markdown. The text itself is the Conversation's."""

from __future__ import annotations

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from app.text_safety import clean, clean_line
from app.tui.answer_text import AnswerText
from app.tui.conversation import Entry

NOTES = {"stopped": "stopped", "interrupted": "broke off"}


def safe_parser() -> MarkdownIt:
    """GitHub's dialect, with HTML shown as the text it is instead of dropped."""
    return MarkdownIt("gfm-like", {"html": False})


class MessageView(Vertical):
    """One Entry. While its answer streams: `feed` takes pieces, `flush` shows them, `finish` renders the whole."""

    DEFAULT_CSS = """
    MessageView {
        height: auto;
        margin: 0 0 1 0;
        & > .heading { color: $text-muted; text-style: bold; padding: 0 1; }
        & > .plain { padding: 0 2; }
        & > .reasoning { padding: 0 2; color: $text-muted; text-style: italic; display: none; }
        & > .open { padding: 0 2; color: $foreground 80%; display: none; }
        & > .note { padding: 0 2; color: $text-warning; display: none; }
        & > .-shown { display: block; }
        & > Markdown { background: transparent; padding: 0 2; }
        &.-user { border-left: outer $primary; background: $surface; }
        &.-assistant { padding: 0 0 0 1; }
    }
    """

    def __init__(self, entry: Entry) -> None:
        super().__init__(classes=f"-{entry.role}")
        self.entry = entry
        self.finished = False
        self._text = AnswerText()
        self._settled: list[str] = []
        self._reasoning: list[str] = []
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        entry = self.entry
        if entry.role != "assistant":
            yield Static("You", classes="heading", markup=False)
            yield Static(clean(entry.content), classes="plain", markup=False)
            return
        yield Static(clean_line(entry.model) or "Assistant", classes="heading", markup=False)
        yield Static("", classes="reasoning", markup=False)
        yield Markdown(clean(entry.content), parser_factory=safe_parser, open_links=False)
        yield Static("", classes="open", markup=False)
        yield Static("", classes="note", markup=False)

    def on_mount(self) -> None:
        if self.entry.role == "assistant":
            self.show_note(NOTES.get(self.entry.state, ""))

    @property
    def answer(self) -> str:
        """What has been fed so far."""
        return self._text.full

    def feed(self, piece: str, reasoning: bool = False) -> None:
        """Takes a piece of the answer; nothing is drawn before the next flush."""
        if reasoning:
            self._reasoning.append(piece)
        else:
            self._settled.append(self._text.feed(piece))

    async def flush(self) -> None:
        """Draws what has come since the last flush."""
        if self.finished:
            return
        if self._reasoning:
            self._show(".reasoning", "".join(self._reasoning)[-600:])
        self._show(".open", self._text.open)
        settled = "".join(self._settled)
        self._settled.clear()
        if settled:
            if self._stream is None:
                self._stream = Markdown.get_stream(self.query_one(Markdown))
            await self._stream.write(settled)

    async def finish(self, note: str = "") -> None:
        """Renders the whole answer once more, so that the view is exact, and adds a note such as "stopped"."""
        self.finished = True
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self._settled.clear()
        self._show(".open", "")
        self._show(".reasoning", "")
        await self.query_one(Markdown).update(self._text.full)
        self.show_note(note)

    def show_note(self, note: str) -> None:
        self._show(".note", f"({note})" if note else "")

    def _show(self, selector: str, text: str) -> None:
        part = self.query_one(selector, Static)
        part.update(text)
        part.set_class(bool(text), "-shown")
