"""PlainChat: a conversation in plain text on the standard streams, for pipes, screen readers and dumb terminals.

Answers go to `out`, everything else (hints, errors, notes) to `notes`, so that a pipe gets answers alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from app.client import ChatMessage, Delta, SamplingChoice, ShardwiseClient
from backend.errors import ShardwiseError

HELP = """\
/new          start over
/system TEXT  set the system prompt (nothing after it: remove it) and start over
/regenerate   another answer to the last message
/help         this list
/quit         leave (so does Ctrl+D)
A line that ends in \\ goes on in the next one. Ctrl+C stops an answer; once more leaves."""


@dataclass(slots=True)
class Conversation:
    """What has been said; `system` comes first in every request."""

    system: str
    turns: list[ChatMessage]

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        system = (ChatMessage("system", self.system),) if self.system else ()
        return (*system, *self.turns)


class PlainChat:
    """One conversation with one model. The runner's loop is only busy while an answer streams."""

    def __init__(
        self,
        runner: asyncio.Runner,
        client: ShardwiseClient,
        model: str,
        system: str,
        sampling: SamplingChoice,
        out: TextIO,
        notes: TextIO,
    ) -> None:
        self._runner, self._client, self._model, self._sampling = runner, client, model, sampling
        self._out, self._notes = out, notes
        self._conversation = Conversation(system, [])

    def answer(self, prompt: str) -> None:
        """Streams the answer to `prompt` and remembers both.

        Raises:
            ShardwiseError: the server refused or broke off; what came was written, the prompt is forgotten.
            KeyboardInterrupt: the user stopped it; what came is remembered.
        """
        self._conversation.turns.append(ChatMessage("user", prompt))
        parts: list[str] = []
        try:
            self._runner.run(self._stream(parts))
        except ShardwiseError:
            if not parts:
                self._conversation.turns.pop()
            raise
        finally:
            text = "".join(parts)
            if text and not text.endswith("\n"):
                self._out.write("\n")
                self._out.flush()
            if text:
                self._conversation.turns.append(ChatMessage("assistant", text))

    async def _stream(self, parts: list[str]) -> None:
        answer = self._client.chat(self._model, self._conversation.messages, self._sampling)
        async with contextlib.aclosing(answer):  # type: ignore[type-var]
            async for item in answer:
                if not isinstance(item, Delta):
                    if item.reason == "length":
                        self._say("(the answer was cut at the most tokens)")
                elif not item.reasoning:
                    parts.append(item.text)
                    self._out.write(item.text)
                    self._out.flush()

    def converse(self, read: Callable[[str], str]) -> None:
        """Asks and answers until the user leaves. `read(prompt)` gives a line; EOFError ends.

        An error is told and the conversation goes on; a second Ctrl+C in a row leaves.
        """
        self._say(f"Chatting with {self._model}. /help lists the commands.")
        interrupted = False
        while True:
            try:
                line = self._read_lines(read)
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line.strip():
                    self.answer(line)
                interrupted = False
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self._say("\n(stopped; Ctrl+C once more, or /quit, leaves)")
            except ShardwiseError as error:
                self._say(str(error))

    def _read_lines(self, read: Callable[[str], str]) -> str:
        lines = [read("> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read("… "))
        return "\n".join(lines)

    def _command(self, line: str) -> bool:
        """Does what a line that starts with a slash says; False to leave."""
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "bye"):
            return False
        if name == "new":
            self._conversation.turns.clear()
            self._say("A new conversation.")
        elif name == "system":
            self._conversation = Conversation(rest.strip(), [])
            self._say("System prompt set." if rest.strip() else "System prompt removed.")
        elif name == "regenerate":
            self._regenerate()
        else:
            self._say(HELP if name == "help" else f"There is no command /{name}.\n{HELP}")
        return True

    def _regenerate(self) -> None:
        turns = self._conversation.turns
        while turns and turns[-1].role != "user":
            turns.pop()
        if turns:
            self.answer(turns.pop().content)
        else:
            self._say("There is nothing to answer yet.")

    def _say(self, text: str) -> None:
        self._notes.write(text + "\n")
        self._notes.flush()
