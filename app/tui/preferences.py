"""Preferences: what the TUI remembers between runs, in one JSON file. Options of the server are `app.settings`'s."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from app.client import SamplingChoice

DEFAULT_THEME = "shardwise"


@dataclass(frozen=True, slots=True)
class Preferences:
    """Theme, the model started last, and the system prompt and sampling for new chats."""

    theme: str = DEFAULT_THEME
    model: str = ""
    system: str = ""
    sampling: SamplingChoice = field(default_factory=SamplingChoice)


def default_path() -> Path:
    return platformdirs.user_config_path("shardwise") / "tui.json"


def load(path: Path) -> Preferences:
    """What is remembered; the defaults for whatever is missing or unreadable."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Preferences()
    if not isinstance(body, dict):
        return Preferences()
    texts = {name: body[name] for name in ("theme", "model", "system") if isinstance(body.get(name), str)}
    return replace(Preferences(), **texts, sampling=_sampling(body.get("sampling")))


def save(path: Path, preferences: Preferences) -> None:
    """Replaces the file in one step.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(preferences), file, indent=2)
    fresh.replace(path)


def _sampling(body: Any) -> SamplingChoice:
    if not isinstance(body, dict):
        return SamplingChoice()
    known: dict[str, Any] = {
        name: value
        for name, value in body.items()
        if name in SamplingChoice.__dataclass_fields__ and isinstance(value, int | float)
    }
    return SamplingChoice(**known)
