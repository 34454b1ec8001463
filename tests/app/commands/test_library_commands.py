"""`pull`, `models` and `rm` as typed by a person and as read by a program."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from huggingface_hub import constants
from typer.testing import CliRunner

from app.commands.models import models
from app.commands.progress import shown_progress
from app.commands.pull import pull
from app.commands.rm import rm
from backend.errors import ModelNotFoundError
from tests.fakes.hub import FakeHub, FakeRepository

NAME = "maker/tiny"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[typer.Typer]:
    header = json.dumps({"w": {"dtype": "F32", "shape": [250_000], "data_offsets": [0, 1_000_000]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(1_000_000)
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    files = {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": weights}
    with FakeHub({NAME: FakeRepository(files, large=frozenset({"model.safetensors"}))}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "ours"))
        app = typer.Typer()
        for function in (pull, models, rm):
            app.command()(function)
        yield app


def run(command: typer.Typer, *arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout, result.stderr


def test_pull_then_models_then_rm(command: typer.Typer) -> None:
    out, errors = run(command, "pull", NAME)
    assert "LlamaForCausalLM" in out
    assert "snapshots" in out
    assert errors.splitlines()[-1] == f"{NAME}: 1.0 MB of 1.0 MB (100%)"
    out, _ = run(command, "models")
    assert out.split()[:4] == [NAME, "1.0", "MB", "safetensors"]
    out, _ = run(command, "rm", NAME)
    assert out == f"Deleted {NAME}: 1.0 MB freed.\n"
    assert run(command, "models", "--json") == ("[]\n", "")


def test_pull_as_json_is_lines_of_progress_and_a_result(command: typer.Typer) -> None:
    out, errors = run(command, "pull", "--json", NAME)
    lines = [json.loads(line) for line in out.splitlines()]
    *progress, result = lines
    assert progress[-1]["done"] == progress[-1]["total"] > 1_000_000
    assert result["parameters"] == 250_000
    assert Path(result["path"], "model.safetensors").is_file()
    assert errors == ""
    listed = json.loads(run(command, "models", "--json")[0])
    assert [(model["name"], model["architecture"]) for model in listed] == [(NAME, "LlamaForCausalLM")]


def test_errors_pass_to_the_command_line_as_they_are(command: typer.Typer) -> None:
    with pytest.raises(ModelNotFoundError, match="or it is private"):
        run(command, "pull", "maker/nowhere")
    with pytest.raises(ModelNotFoundError, match="not installed"):
        run(command, "rm", "starter")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with shown_progress("[b]name", as_json=False) as on_progress:
        on_progress(500_000, 1_000_000)
    assert "[b]name" in capsys.readouterr().err


def test_the_commands_load_nothing_heavy() -> None:
    program = """
import sys
import app.commands.pull, app.commands.models, app.commands.rm
print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy', 'rich.progress') if name in sys.modules])
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.strip() == "[]"
