"""What the first screen offers, from the real library over an empty machine and one with models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.tui import library
from app.tui.dependencies import ModelChoice
from backend.errors import ShardwiseError
from backend.library.catalogue import InstalledModel


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("backend.library.catalogue.installed_starter", lambda: None)
    monkeypatch.setattr("backend.library.catalogue.hub_cache", lambda: tmp_path)


@pytest.mark.usefixtures("empty")
def test_a_fresh_machine_is_offered_the_starter() -> None:
    (only,) = library.choices()
    assert (only.name, only.installed) == ("starter", False)
    assert only.bytes is not None
    assert 90e6 < only.bytes < 100e6


def test_installed_models_come_before_a_starter_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    there = InstalledModel(name="org/m", format="gguf", bytes=5, architecture="llama", path="/x")
    monkeypatch.setattr("backend.library.catalogue.catalogue", lambda: [there])
    first, second = library.choices()
    assert first == ModelChoice("org/m", 5, True, "llama")
    assert second.name == "starter"


def test_fetching_what_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ShardwiseError):
        library.fetch(str(tmp_path / "missing.gguf"), lambda done, total: None)


def test_the_tui_and_plain_chat_start_without_torch() -> None:
    code = (
        "import sys, app.tui.app, app.tui.library, app.commands.chat, app.background; "
        "from app.tui.dependencies import of_this_machine; of_this_machine(); app.tui.library.choices(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    folder = Path(library.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False, timeout=60).returncode == 0
