"""AccuracyStore: what an earlier start measured of a model on a device, so that later ones need not. Pure files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backend.accuracy.report import ContextAccuracy
from backend.cache_identity import weights_identity
from backend.hardware.machine import Machine
from backend.library.files import ModelFiles
from backend.library.locations import cache_home

# Counts changes to what is measured or how: figures of another version are not read.
PROBE_VERSION = 1


@dataclass(frozen=True, slots=True)
class AccuracyStore:
    """One small file a model, dtype and device in `folder`. A file that cannot be read counts as none."""

    folder: Path

    def read(self, key: str) -> tuple[ContextAccuracy, ...] | None:
        try:
            return msgspec.msgpack.decode((self.folder / key).read_bytes(), type=tuple[ContextAccuracy, ...])
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, key: str, contexts: tuple[ContextAccuracy, ...]) -> None:
        """Whole or not at all. Where it cannot be written, the next start measures again."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".making-", dir=self.folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.msgpack.encode(contexts))
                os.replace(name, self.folder / key)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise


def default_store() -> AccuracyStore:
    return AccuracyStore(cache_home() / "accuracy")


def accuracy_key(files: ModelFiles, dtype: str, device: str, machine: Machine, weights: str = "model") -> str:
    """A file name that changes with the weights and their format, the config, the dtype and the kind of device.

    Raises OSError for a model that cannot be read.
    """
    config = (Path(files.folder) / "config.json").read_bytes()
    name = machine.cpu.name if device == "cpu" else machine.gpus[int(device.removeprefix("cuda:"))].name
    kind = dtype if weights == "model" else f"{dtype} {weights}"
    facts = (str(PROBE_VERSION), weights_identity(files).hex(), hashlib.sha256(config).hexdigest(), kind, name)
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()
