"""The composed server: its refusals, and a whole chat through it that leaves no word in any log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.compose import find_model
from backend.errors import ModelNotFoundError
from backend.library.locations import source_root

CANARY = "canary-4711"


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, str]:
    """An environment whose user folders are all in `tmp_path`."""
    names = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")
    return {**os.environ, **dict.fromkeys(names, str(tmp_path)), "PYTHONPATH": str(source_root())}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with a small tokenizer; the test's engine reads nothing else of a model."""
    folder = tmp_path / "model"
    words = {"[UNK]": 0, "</s>": 1, **{f"w{number}": number for number in range(2, 997)}, CANARY: 997}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    fast.save_pretrained(folder)
    return folder


def test_beyond_loopback_without_a_key_is_refused_before_anything_is_loaded(homes: dict[str, str]) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "app", "serve", "starter", "--host", "0.0.0.0", "--port", "0"],
        env=homes,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert finished.returncode != 0
    assert "keys create" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_folder_that_is_not_there_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        find_model(str(tmp_path / "missing"))


def test_a_chat_through_the_whole_server_leaves_no_word_in_a_log(
    homes: dict[str, str], model_folder: Path, tmp_path: Path
) -> None:
    program = [sys.executable, "-P", "-m", "tests.fakes.composed_server", str(model_folder), str(tmp_path)]
    process = subprocess.Popen(program, env=homes, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2].rstrip(";")
        assert process.stdout.readline().startswith("Ready")
        question = {
            "model": "test",
            "messages": [{"role": "user", "content": CANARY}],
            "max_tokens": 5,
            "temperature": 0,
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=question, timeout=20)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 5
        refused = httpx.post(f"{url}/v1/chat/completions", json={**question, CANARY: 1}, timeout=20)
        assert refused.status_code == 400
        health = httpx.get(f"{url}/health").json()
        assert health["engines"][0]["ranks"][0]["pid"] == health["engines"][0]["pid"]
        process.terminate()
        output, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.communicate()
    logs = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".log", ".jsonl")]
    assert any("engine ready" in text for text in logs)
    words = [CANARY, *answer.json()["choices"][0]["message"]["content"].split()]
    for text in (*logs, output, errors):
        assert not any(word in text.split() or CANARY in text for word in words)
