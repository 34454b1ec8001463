"""A server program for tests: all that `serve` composes, over the test's engine process and a folder's tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

from app.cli import ending
from app.compose import compose_server
from app.keys import KeyStore
from app.listener import bind
from app.logs import configure_logging
from app.serve import run_server
from app.settings import load_settings
from backend.library.files import ModelFiles
from tests.fakes.engine_options import EngineOptions


def main() -> int:
    model, folder = sys.argv[1], Path(sys.argv[2])
    files = ModelFiles(name="test", format="safetensors", weights=("/w",), folder=model, bytes=1)
    listener = bind("127.0.0.1", 0)
    configure_logging(folder / "server.jsonl")
    settings, keys = load_settings(), KeyStore(folder / "keys.json")
    return run_server(
        lambda: compose_server(files, settings, listener, keys, folder / "engine.log", EngineOptions().command())
    )


if __name__ == "__main__":
    with ending():
        sys.exit(main())
