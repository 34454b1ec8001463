"""NvmlState: a fake driver's state on disk, which tests change under the programs that ask it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FAKES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class NvmlState:
    """Made by `install`; every program that is started afterwards finds the fake driver."""

    path: Path

    @classmethod
    def install(cls, topology: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlState:
        """A driver with the GPUs of `topologies/`, its state kept in `folder`."""
        state = cls(folder / "nvml.json")
        state.path.write_text((_FAKES / "topologies" / f"{topology}.json").read_text())
        inherited = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_FAKES / "nvml"), inherited]).rstrip(os.pathsep))
        monkeypatch.setenv("SHARDWISE_FAKE_NVML", str(state.path))
        monkeypatch.setattr("backend.hardware.nvml.driver_installed", lambda: True)
        return state

    def change(self, gpu: int | None = None, **fields: Any) -> None:
        """Sets fields of one GPU, or of the whole state; whoever reads meanwhile sees either state whole."""
        state = json.loads(self.path.read_text())
        (state if gpu is None else state["gpus"][gpu]).update(fields)
        self._write(state)

    def remove(self, gpu: int) -> None:
        """The GPU is no longer counted."""
        state = json.loads(self.path.read_text())
        del state["gpus"][gpu]
        self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        making = self.path.with_suffix(".making")
        making.write_text(json.dumps(state))
        making.replace(self.path)
