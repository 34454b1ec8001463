"""The command line: quick help without heavy imports, lazy commands, and errors that end in lines and a status."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import COMMANDS, application, ending
from backend.errors import SettingError
from backend.library.locations import source_root

HEAVY = ("torch", "transformers", "pydantic", "pydantic_settings", "fastapi", "textual", "numpy", "uvicorn")


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    homes = {} if folder is None else dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"), str(folder))
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **homes, "PYTHONPATH": str(source_root())},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_help_comes_in_half_a_second_and_names_every_command() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        finished = run("-m", "app", "--help")
        times.append(time.perf_counter() - began)
        assert finished.returncode == 0
        assert all(f"  {name}" in finished.stdout for name in COMMANDS)
    assert min(times) < 0.5


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom app.cli import main\nsys.argv = ['shardwise', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert run("-c", program).stdout.splitlines()[-1] == "heavy: []"


def test_serve_help_shows_each_setting_with_its_sentence_and_default() -> None:
    shown = CliRunner().invoke(application, ["serve", "--help"])
    text = " ".join(shown.output.split())
    assert shown.exit_code == 0
    assert "Port to listen on; 0 takes a free one. [default: 8000]" in text
    assert "--kv-pool auto|SIZE" in text
    assert "--host-cache auto|SIZE" in text
    assert "--disk-cache SIZE" in text
    assert "0 for none of it. [default: 0]" in text
    assert "--fallback MODEL" in text
    assert "--replicas auto|COUNT" in text


def test_serving_help_imports_no_torch() -> None:
    program = (
        "import sys\nfrom app.cli import main\nsys.argv = ['shardwise', 'serve', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run("-c", program).stdout.splitlines()[-1] == "False False"


def test_a_users_mistake_ends_in_lines_and_a_status_without_a_traceback(tmp_path: Path) -> None:
    finished = run("-m", "app", "serve", "starter", "--kv-format", "fp4", folder=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[0] == "--kv-format cannot be 'fp4'"
    assert len(finished.stderr.splitlines()) <= 3
    assert finished.stdout == ""


def test_stop_without_a_server_says_so(tmp_path: Path) -> None:
    finished = run("-m", "app", "stop", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (1, "No server is running\n")


def test_a_mistyped_command_is_answered_with_a_suggestion() -> None:
    finished = CliRunner().invoke(application, ["sevre"])
    assert finished.exit_code == 2
    assert "Did you mean 'serve'" in finished.output


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(application, ["--version"]).output.startswith("shardwise ")


def test_completion_knows_the_commands_and_their_options() -> None:
    def complete(words: str) -> str:
        environment = {"_SHARDWISE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return CliRunner().invoke(application, [], env=environment, prog_name="shardwise").output

    assert {"serve", "stop"} <= set(complete("shardwise s").split())
    assert "--kv-pool" in complete("shardwise serve --kv").split()


def test_ctrl_c_is_quiet_and_errors_keep_their_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    with pytest.raises(SystemExit) as ended, ending():
        raise SettingError("What", "Why.", "Hint.")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "What\nWhy.\nHint.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name: str) -> None:
    shown = CliRunner().invoke(application, [name, "--help"])
    assert shown.exit_code == 0
    assert f"shardwise {name}" in shown.output or f"root {name}" in shown.output
