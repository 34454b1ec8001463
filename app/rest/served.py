"""ServedModels: the table of engines by model name, each with its tokenizer and chat template, and who stands in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.chat_template import ChatRenderer, ChatTemplate, template_text
from backend.engine_client import EngineClient, EngineStatus
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


def serves(status: EngineStatus) -> bool:
    """Whether an engine computes at this moment: it is ready, and none of its ranks is being replaced."""
    return status.state == "ready" and all(rank.state != "lost" for rank in status.ranks)


@dataclass(frozen=True)
class Chosen:
    """Who answers a request. `stands_in_for` names the model that was asked for, where another one answers."""

    name: str
    served: ServedEngine
    stands_in_for: str | None = None


class ServedModels:
    """Engines by the names that clients use; the first is the main one.

    `fallback`: the name of the one that answers new requests for the main one while that is away.
    """

    def __init__(self, engines: Mapping[str, ServedEngine], fallback: str | None = None) -> None:
        self._engines = dict(engines)
        self.fallback = fallback

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

    def choose(self, name: str | None) -> Chosen:
        """Who answers a new request for a model. Raises as `get`."""
        found, served = self.get(name)
        if self.stands_in and found == self._main:
            return Chosen(self.stands_in, self._engines[self.stands_in], found)
        return Chosen(found, served)

    @property
    def stands_in(self) -> str | None:
        """The fallback's name while it answers for the main one; a server that is shutting down takes nothing new."""
        if self.fallback is None:
            return None
        main = self._engines[self._main].engine.status()
        spare = self._engines[self.fallback].engine.status()
        return self.fallback if main.state != "draining" and not serves(main) and serves(spare) else None

    @property
    def _main(self) -> str:
        return next(iter(self._engines))
