"""The folder of compiled kernels follows every source that they are made of."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import backend.kernel_cache as module
from backend.compile_kernels import MODULES
from backend.kernel_cache import compile_ahead, kernel_cache


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


def test_kernels_are_compiled_elsewhere_only_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernels"
    code = f"from pathlib import Path; p = Path({str(folder)!r}, 'quant'); p.mkdir(parents=True); (p / 'a.nbc').touch()"
    command = (sys.executable, "-c", code)
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert not compile_ahead(command)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    assert compile_ahead((sys.executable, "-c", "raise SystemExit(1)"))
    assert compile_ahead(command)
    # A second time it would fail, and is not asked.
    assert not compile_ahead(command)


def test_the_kernels_to_compile_are_there() -> None:
    assert all(importlib.util.find_spec(module) for module in MODULES)
