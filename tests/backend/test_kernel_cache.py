"""The folder of compiled kernels follows every source that they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

import backend.kernel_cache as module
from backend.kernel_cache import kernel_cache


def test_a_changed_source_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "quant" / "cpu"
    folder.mkdir(parents=True)
    (folder / "tiles.py").write_text("LANES = 16\n")
    monkeypatch.setattr(module, "source_root", lambda: tmp_path)
    first = kernel_cache()
    assert kernel_cache() == first
    (folder / "tiles.py").write_text("LANES = 32\n")
    second = kernel_cache()
    (folder / "tiles.py").rename(folder / "tables.py")
    assert len({first, second, kernel_cache()}) == 3
    assert second.parent == first.parent
