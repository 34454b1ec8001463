"""ChatTemplate: from messages to a prompt's tokens through the model's own template, rendered in a process that is
killed when it takes too long. What a template may call is `chat_renderer`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backend.chat_renderer import RenderAnswer, RenderRequest
from backend.errors import ShardwiseError
from backend.library.locations import source_root
from backend.special_text import new_guard
from backend.tokenizer import ModelTokenizer

RENDER_SECONDS = 2.0
RENDER_CHARACTERS = 8 * 1024 * 1024
_START_SECONDS = 20.0
_HOPELESS = 64  # characters a token
_INHERITED = ("PATH", "TZ", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH")
RENDERER_COMMAND = (sys.executable, "-P", "-m", "backend.chat_renderer")

# The only template variables that a request may set. None of them can carry a template or shadow ours.
TEMPLATE_VARIABLES = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "preserve_thinking", "date_string"}
)


class ChatTemplateError(ShardwiseError):
    """The messages cannot become a prompt: no template, or the template refuses or fails."""

    code = "chat_template"


class ChatRenderer:
    """Owns the renderer process: starts it at first use, kills it after `seconds`, starts it again."""

    def __init__(self, seconds: float = RENDER_SECONDS, characters: int = RENDER_CHARACTERS) -> None:
        self._seconds, self._characters = seconds, characters
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(RenderAnswer)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def warm_up(self) -> None:
        """Starts the process now, so that the first chat does not wait for it; that chat reports what goes wrong."""
        with contextlib.suppress(ChatTemplateError):
            await self.render("", {})

    async def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The rendered text.

        Raises:
            ChatTemplateError: the template refused, failed, or took too long.
        """
        request = RenderRequest(template, dict(variables), self._characters, self._seconds + 1.0)
        data = self._encoder.encode(request)
        async with self._lock:
            answer = await self._ask(len(data).to_bytes(4, "big") + data)
        if answer.error:
            raise ChatTemplateError("The model's chat template refused the messages", answer.error)
        return answer.text

    async def _ask(self, message: bytes) -> RenderAnswer:
        try:
            process = await self._running()
            async with asyncio.timeout(self._seconds):
                return self._decoder.decode(await _exchange(process, message))
        except TimeoutError as error:
            await self._kill()
            raise ChatTemplateError(
                "The model's chat template took too long", f"It was stopped after {self._seconds:g} s."
            ) from error
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            await self._kill()
            raise ChatTemplateError("The model's chat template ended its process") from error
        except BaseException:
            # Cancelled between question and answer: the next question must not get this answer.
            await self._kill()
            raise

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *RENDERER_COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(os.environ),
                # Ctrl-C in the terminal is the server's to handle.
                start_new_session=True,
            )
            # Its imports are not the template's time.
            warm_up = self._encoder.encode(RenderRequest("", {}, 0, _START_SECONDS))
            async with asyncio.timeout(_START_SECONDS):
                await _exchange(self._process, len(warm_up).to_bytes(4, "big") + warm_up)
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Closes the pipes now and not when the garbage is collected.
        process._transport.close()  # pyright: ignore[reportAttributeAccessIssue]

    async def close(self) -> None:
        """Ends the process."""
        await self._kill()


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What the renderer needs to start, and no more: tokens and keys are in environments too."""
    paths = [str(source_root()), *(part for part in inherited.get("PYTHONPATH", "").split(os.pathsep) if part)]
    kept = {name: inherited[name] for name in _INHERITED if name in inherited}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


async def _exchange(process: asyncio.subprocess.Process, message: bytes) -> bytes:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise EOFError
    stdin.write(message)
    await stdin.drain()
    length = int.from_bytes(await stdout.readexactly(4), "big")
    return await stdout.readexactly(length)


class ChatTemplate:
    """One model's chat template.

    Args:
        tokenizer: the model's.
        text: the template; None where the model has none.
        renderer: shared by all models of a server.
    """

    def __init__(self, tokenizer: ModelTokenizer, text: str | None, renderer: ChatRenderer) -> None:
        self._tokenizer, self._text, self._renderer = tokenizer, text, renderer
        self._knows_developer = text is not None and re.search(r"['\"]developer['\"]", text) is not None

    @property
    def text(self) -> str | None:
        return self._text

    def mentions(self, variable: str) -> bool:
        """Whether the template looks at a variable at all."""
        return self._text is not None and re.search(rf"\b{re.escape(variable)}\b", self._text) is not None

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """The rendered chat, and the guard that stands in its user texts (see `special_text`).

        Raises:
            ChatTemplateError: there is no template, it refused, or a variable is not allowed.
        """
        if self._text is None:
            raise ChatTemplateError(
                "This model has no chat template, so it takes no chats",
                hint="Use /v1/completions, or an instruction-tuned model.",
            )
        variables = dict(variables or {})
        for name in variables:
            if name not in TEMPLATE_VARIABLES:
                raise ChatTemplateError(
                    f"chat_template_kwargs: {name!r} is not allowed",
                    f"Allowed are {', '.join(sorted(TEMPLATE_VARIABLES))}.",
                )
        guard, end = new_guard(), new_guard()
        special = self._tokenizer.special_text
        safe = special.guard(self._arranged(messages), guard)
        if continue_final_message:
            # With a space behind it, as transformers does: where the template trims, it also trims our end.
            safe[-1]["content"] += f"{end} "
        text = await self._renderer.render(
            self._text,
            {
                **self._tokenizer.named_special_tokens(),
                "tools": None,
                "documents": None,
                **special.guard(variables, guard),
                "messages": safe,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        if continue_final_message:
            if end not in text:
                raise ChatTemplateError("The model's chat template drops the final message: it cannot go on")
            kept, _, after = text.rpartition(end)
            text = kept if after.startswith(" ") else kept.rstrip()
        return text, guard

    async def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        limit: int | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The chat's prompt tokens; as `render`.

        Raises:
            ContextOverflowError: the prompt has more than `limit` tokens.
        """
        for message in messages:
            # What is hopelessly long is refused before it is rendered. A template may leave out parts of a message,
            # such as earlier thinking, so this is for the extreme only.
            content = message["content"]
            if limit is not None and len(content) > _HOPELESS * limit:
                await asyncio.to_thread(self._tokenizer.check_length, content, limit)
        text, guard = await self.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        tokenizer = self._tokenizer

        def run() -> list[int]:
            if limit is not None:
                tokenizer.check_length(text, limit)
            return tokenizer.encode_rendered(text, guard)

        return await off_loop(len(text), run)

    def _arranged(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Developer becomes system where the template does not know it; all system texts go first, as one."""
        rest: list[dict[str, Any]] = []
        system: list[str] = []
        for message in messages:
            role = message["role"]
            if role == "developer" and not self._knows_developer:
                role = "system"
            if role == "system":
                system.append(message["content"])
            else:
                rest.append({**message, "role": role})
        return [{"role": "system", "content": "\n\n".join(system)}, *rest] if system else rest


async def off_loop(characters: int, work: Any) -> Any:
    """Runs `work` here when the text is short, else in a thread, so that streams go on meanwhile."""
    return work() if characters < 4096 else await asyncio.to_thread(work)


def template_text(tokenizer: ModelTokenizer, file_text: str | None) -> str | None:
    """The template of a model: its own file, else `chat_template` of tokenizer_config.json ("default" of several)."""
    if file_text is not None:
        return file_text
    found = tokenizer.config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None
