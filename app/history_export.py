"""Exports of chats as Markdown and JSON. Keeping chats is `app.history`'s."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from app.history import Chat, HistoryError, Turn
from app.text_safety import clean

EXPORT_VERSION = 1
_SPEAKERS = {"user": "You", "assistant": "Assistant", "system": "System"}


def to_markdown(chat: Chat, turns: tuple[Turn, ...]) -> str:
    """The chat as a document a person can read; texts are cleaned of control sequences."""
    parts = [f"# {clean(chat.title)}", f"*{clean(chat.model)}, {_when(chat.created)}*"]
    if chat.system:
        parts += ["## System", clean(chat.system)]
    for turn in turns:
        parts += [f"## {_SPEAKERS[turn.role]}", clean(turn.content)]
        if turn.state in ("stopped", "interrupted", "streaming"):
            parts.append(f"*({'stopped' if turn.state == 'stopped' else 'broke off'})*")
    return "\n\n".join(parts) + "\n"


def to_json(chat: Chat, turns: tuple[Turn, ...]) -> str:
    """The chat with all that is known of it; `messages` has the shape that the REST API takes."""
    messages = [
        {
            "role": turn.role,
            "content": clean(turn.content),
            "state": turn.state,
            "model": clean(turn.model),
            "created": _when(turn.created),
            **{name: value for name, value in asdict(turn.statistics).items() if value is not None},
        }
        for turn in turns
    ]
    sampling = {name: value for name, value in asdict(chat.sampling).items() if value is not None}
    document = {
        "version": EXPORT_VERSION,
        "title": clean(chat.title),
        "model": clean(chat.model),
        "system": clean(chat.system),
        "sampling": sampling,
        "created": _when(chat.created),
        "updated": _when(chat.updated),
        "messages": messages,
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def write_export(chat: Chat, turns: tuple[Turn, ...], folder: Path, kind: str) -> Path:
    """Writes the chat into `folder` under a new name, readable by the user alone; `kind` is "markdown" or
    "json".

    Raises:
        HistoryError: the folder cannot be written.
    """
    text, ending = (to_json(chat, turns), "json") if kind == "json" else (to_markdown(chat, turns), "md")
    slug = re.sub(r"[^\w]+", "-", chat.title.lower()).strip("-")[:40] or "chat"
    for number in range(1, 1000):
        path = folder / f"shardwise-{slug}{'' if number == 1 else f'-{number}'}.{ending}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        except OSError as error:
            raise HistoryError("The chat could not be exported", f"{path}: {error.strerror}.") from error
        return path
    raise HistoryError("The chat could not be exported", f"{folder} has a thousand exports of this name.")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
