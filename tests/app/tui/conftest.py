"""The TUI over a fake server and a fake library, with files in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_textual_snapshot import SVGImageExtension

from app.tui.app import ShardwiseApp
from tests.fakes.fake_server import FakeServer, serving
from tests.fakes.tui import Outside

# The plugin names its files .svg in a way that syrupy 5 and later no longer know.
SVGImageExtension.file_extension = "svg"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving(FakeServer()) as running:
        yield running


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


@pytest.fixture
def connected(fake: FakeServer, outside: Outside) -> ShardwiseApp:
    """An app that opens on the chat with the fake server."""
    return ShardwiseApp(outside.dependencies(), connect=fake.url)
