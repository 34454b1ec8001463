"""ServedModels: the table of engines by model name, each with its tokenizer and chat template."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.chat_template import ChatRenderer, ChatTemplate, template_text
from backend.engine_client import EngineClient
from backend.errors import ModelNotFoundError
from backend.library.files import ModelFiles
from backend.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class ServedEngine:
    """One model as the endpoint serves it."""

    engine: EngineClient
    tokenizer: ModelTokenizer
    template: ChatTemplate
    created: int = field(default_factory=lambda: int(time.time()))


def served_engine(engine: EngineClient, files: ModelFiles, renderer: ChatRenderer) -> ServedEngine:
    """Reads a model's tokenizer files; the engine may still be starting.

    Raises:
        BrokenModelError: a file is missing or broken.
    """
    tokenizer = ModelTokenizer(files.folder)
    path = Path(files.folder) / "chat_template.jinja"
    text = path.read_text("utf-8") if path.is_file() else None
    return ServedEngine(engine, tokenizer, ChatTemplate(tokenizer, template_text(tokenizer, text), renderer))


class ServedModels:
    """Engines by the names that clients use; the first is the main one."""

    def __init__(self, engines: Mapping[str, ServedEngine]) -> None:
        self._engines = dict(engines)

    def __iter__(self) -> Iterator[tuple[str, ServedEngine]]:
        return iter(self._engines.items())

    def get(self, name: str | None) -> tuple[str, ServedEngine]:
        """The engine of a name; of None, the main one.

        Raises:
            ModelNotFoundError: no such model is served.
        """
        if name is None:
            return next(iter(self._engines.items()))
        found = self._engines.get(name)
        if found is None:
            raise ModelNotFoundError(
                f"The model {name[:200]!r} is not served here",
                f"Served: {', '.join(self._engines)}.",
            )
        return name, found
