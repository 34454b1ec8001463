"""What a MODEL argument means: `starter`, a repository, a folder or a GGUF file. Looking it up is left to `resolve`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from backend.errors import ModelNotFoundError

STARTER = "starter"
_HUB_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[\w.][\w./-]{0,199}))?"
    r"(?::(?P<file>[\w.][\w./ +-]{0,250}\.gguf))?",
    re.ASCII,
)
_FORMS = "A model is 'starter', 'org/name[@revision]', 'org/name:file.gguf', a folder, or a .gguf file."


@dataclass(frozen=True, slots=True)
class StarterName:
    """The small model that comes from the Python package index."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository on the hub; `revision` None means its main branch, `file` is one GGUF file in it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}{f':{self.file}' if self.file else ''}"


@dataclass(frozen=True, slots=True)
class FolderName:
    """A folder of the user's."""

    path: Path


@dataclass(frozen=True, slots=True)
class GgufName:
    """A GGUF file of the user's."""

    path: Path


ModelName = StarterName | HubName | FolderName | GgufName


def parse(name: str) -> ModelName:
    """What `name` means.

    A folder that holds a model wins over a repository of the same name, as it does in transformers; `hf://` always
    means the hub. Raises ModelNotFoundError.
    """
    if name == STARTER:
        return StarterName()
    if name.startswith("hf://"):
        return _hub_name(name.removeprefix("hf://"), name)
    if "\0" in name or not name.strip():
        raise ModelNotFoundError("No model is named.", hint=_FORMS)
    local = _local(name)
    if local is not None:
        return local
    if name.startswith(("/", "./", "../", "~")):
        raise ModelNotFoundError(f"There is no model at {name}.", "No such file or folder.", _FORMS)
    return _hub_name(name, name)


def _local(name: str) -> FolderName | GgufName | None:
    try:
        path = Path(name).expanduser()
        if path.is_dir() and (_looks_like_path(name) or _holds_model(path)):
            return FolderName(path.resolve())
        if path.is_file():
            if path.suffix.lower() == ".gguf":
                return GgufName(path.absolute())
            raise ModelNotFoundError(
                f"{name} is not a model.", f"The file's name ends in '{path.suffix}', not in '.gguf'.", _FORMS
            )
    except (OSError, RuntimeError):
        # A name too long for a path, or a home folder that does not exist: not something on this disk.
        return None
    return None


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith("/") or _HUB_NAME.fullmatch(name) is None


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _hub_name(text: str, name: str) -> HubName:
    found = _HUB_NAME.fullmatch(text)
    if found is None or ".." in text or "//" in text or "--" in found["repository"]:
        why = (
            "No such file or folder." if name.lower().endswith(".gguf") else "It is neither on disk nor a repository's."
        )
        raise ModelNotFoundError(f"There is no model named {name!r}.", why, _FORMS)
    return HubName(found["repository"], found["revision"], found["file"])
