"""`shardwise fit` as typed: its exit status, JSON for programs, 80 columns for people, and errors that name the fix."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from huggingface_hub import constants

from app.cli import application, ending
from backend.library.locations import source_root
from backend.planner.fit.report import FitReport
from tests.fakes.hub import FakeHub, FakeRepository
from tests.fit.tables import DOCS, blocks, printed

WEIGHTS = 8 << 20
SMALL, LARGE = "Qwen/Qwen3-0.6B", "meta-llama/Meta-Llama-3.1-405B"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}

Fit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fit(capsys: pytest.CaptureFixture[str]) -> Fit:
    """Runs `shardwise fit` with arguments: its status, what it prints, and what it says to standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended, ending():
            application(["fit", *arguments], prog_name="shardwise")
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub is a server here, and the caches are empty."""
    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "ours"))
        yield server


def repository(config: dict[str, Any], **options: Any) -> FakeRepository:
    """A model of one tensor; what it weighs is in its header."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [WEIGHTS // 2], "data_offsets": [0, WEIGHTS]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(WEIGHTS)
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    return FakeRepository(files, large=frozenset({"model.safetensors"}), **options)


def test_what_fits_ends_with_0_and_what_does_not_with_3(fit: Fit) -> None:
    status, out, _ = fit(SMALL, "--offline", "--hardware", "RTX 3060")
    assert status == 0
    assert "verdict   fits with margin." in out
    status, out, _ = fit(LARGE, "--offline", "--hardware", "RTX 3060", "--weights", "model")
    assert status == 3
    assert "verdict   does not fit." in out
    assert "ways out, cheapest first" in out


def test_json_is_the_report_and_nothing_else(fit: Fit) -> None:
    status, out, _ = fit(SMALL, "--offline", "--hardware", "RTX 3060", "--users", "2", "--context", "4K", "--json")
    report = msgspec.json.decode(out, type=FitReport)
    assert status == 0
    assert (report.model, report.ask.users, report.ask.context) == (SMALL, 2, 4096)
    assert report.best is not None
    first = report.plans[report.best]
    assert all(sum(term.bytes for term in device.terms) + device.unused == device.usable for device in first.devices)


def test_several_machines_are_compared_in_a_table_or_a_list_of_reports(fit: Fit) -> None:
    asked = (SMALL, "--offline", "--hardware", "RTX 3060", "--hardware", "2x H100")
    _, out, _ = fit(*asked)
    assert [line[:8].rstrip() for line in out.splitlines()[2:5]] == ["hardware", "RTX 3060", "2x H100"]
    _, out, _ = fit(*asked, "--json")
    assert len(msgspec.json.decode(out, type=list[FitReport])) == 2


@pytest.mark.parametrize("hardware", ["RTX 3060", "8x H100", "2 nodes of 4x A100-80GB, ib-hdr", "cpu 32GiB"])
def test_a_pipe_gets_80_columns_without_drawings(fit: Fit, hardware: str) -> None:
    _, out, _ = fit("meta-llama/Meta-Llama-3.1-8B", "--offline", "--hardware", hardware, "--users", "8")
    assert max(map(len, out.splitlines())) <= 80
    assert not set(out) & set("█▓▒│─┌")


def test_a_terminal_gets_bars_unless_it_asks_for_none(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    asked = (SMALL, "--offline", "--hardware", "RTX 3060")
    assert "█ weights" in fit(*asked)[1]
    assert "█" not in fit(*asked, "--plain")[1]


def test_without_a_model_the_catalogue_is_listed(fit: Fit) -> None:
    status, out, _ = fit()
    assert status == 0
    assert next(line.split() for line in out.splitlines() if line.startswith(SMALL))[1:] == [
        "596", "M", "1.11", "112", "56.9", "40K",
    ]  # fmt: skip
    rows = json.loads(fit("--json", "--context", "128K")[1])
    assert next(row["kv_bytes"] for row in rows if row["name"] == "meta-llama/Meta-Llama-3.1-70B") == 40 << 30


def test_links_are_told_instead_of_plans(fit: Fit) -> None:
    status, out, _ = fit("meta-llama/Meta-Llama-3.1-70B", "--offline", "--links", "--hardware", "4x H100")
    assert status == 0
    assert "80 layers, 16 KiB an all-reduce" in out
    assert "plans" not in out


def test_help_has_the_grammar_of_hardware_in_80_columns(fit: Fit) -> None:
    status, out, _ = fit("--help")
    assert status == 0
    assert "2 nodes of 4x A100-80GB, ib-hdr" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((SMALL, "--hardware", "4x H900"), "H900"),
        ((SMALL, "--context", "many"), "32K"),
        ((SMALL, "--weights", "int3", "--hardware", "H100"), "int8"),
        ((SMALL, "--context", "1M", "--hardware", "H100"), "40960"),
        ((SMALL, "--hardware", "H100", "--plan", "99"), "There is no plan 99"),
        ((SMALL, "--hardware", "H100", "--utilization", "0.5"), "--engine vllm"),
        ((SMALL, "--hardware", "H100", "--engine-version", "0.19.0"), "--engine vllm"),
        ((SMALL, "--hardware", "H100", "--engine", "vllm", "--engine-version", "new"), "0.19.0"),
    ],
)
def test_a_mistake_in_an_option_ends_with_2_and_says_what_there_is(
    fit: Fit, arguments: tuple[str, ...], said: str
) -> None:
    status, out, errors = fit(*arguments, "--offline")
    assert (status, out) == (2, "")
    assert said in errors
    assert len(errors.splitlines()) <= 3


def test_a_model_of_the_hub_is_known_from_its_config_and_headers_alone(fit: Fit, hub: FakeHub) -> None:
    hub.repositories["maker/tiny"] = repository(CONFIG)
    status, out, _ = fit("maker/tiny", "--hardware", "RTX 3060")
    assert status == 0
    assert "maker/tiny" in out
    assert 0 < sum(count for file, _, count in hub.sent if file.endswith(".safetensors")) < WEIGHTS // 4


def test_an_unknown_model_says_what_names_there_are(fit: Fit, hub: FakeHub) -> None:
    status, out, errors = fit("maker/none", "--hardware", "RTX 3060")
    assert (status, out) == (1, "")
    assert "maker/none" in errors
    status, _, errors = fit("meta-llama/Meta-Llama-3.1-80B", "--offline", "--hardware", "RTX 3060")
    assert status == 1
    assert "Meta-Llama-3.1-8B" in errors


def test_a_gated_model_says_how_to_get_access(fit: Fit, hub: FakeHub) -> None:
    hub.repositories["maker/closed"] = repository(CONFIG, gated=True)
    status, _, errors = fit("maker/closed", "--hardware", "RTX 3060")
    assert status == 1
    assert "HF_TOKEN" in errors


def test_offline_an_unknown_model_is_not_asked_for(fit: Fit, hub: FakeHub) -> None:
    hub.repositories["maker/tiny"] = repository(CONFIG)
    status, _, errors = fit("maker/tiny", "--offline", "--hardware", "RTX 3060")
    assert status == 1
    assert "--offline" in errors
    assert hub.sent == []


def test_a_config_without_what_is_needed_says_what_is_missing(fit: Fit, hub: FakeHub) -> None:
    short = {name: value for name, value in CONFIG.items() if name not in ("num_hidden_layers", "hidden_size")}
    hub.repositories["maker/short"] = repository(short | {"model_type": "unheard_of"})
    status, _, errors = fit("maker/short", "--hardware", "RTX 3060")
    assert status == 1
    assert "config" in errors
    assert "Traceback" not in errors


def test_answering_offline_imports_no_torch_and_nothing_that_serves() -> None:
    program = (
        "import sys\nfrom app.cli import main\n"
        f"sys.argv = ['shardwise', 'fit', '{SMALL}', '--offline', '--hardware', '4x H100']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'transformers', 'fastapi', 'textual', 'numpy', 'rich')\n"
        "print('heavy:', [name for name in heavy if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(source_root())}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert finished.stdout.splitlines()[-1] == "heavy: []"


def test_the_tables_of_the_docs_are_what_the_commands_print_now() -> None:
    cheap = [block for page in sorted(DOCS.glob("*.md")) for block in blocks(page)][::4]
    assert cheap
    for block in cheap:
        assert block.output == printed(block.command), f"run `make docs`: {block.page.name}: {block.command}"
