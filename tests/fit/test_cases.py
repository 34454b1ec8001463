"""Predicted memory holds to logged runs, is blind, and no row of a file stops the command."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fit.case_prediction import predict
from tests.fit.case_row import read_row
from tests.fit.case_score import ScoredCase, absolute, relative, score, summary
from tests.fit.cases import main, read_case
from tests.fit.engine_words import engine_of
from tests.fit.gpu_words import gpu_of
from tests.fit.quant_words import packing_of

_FILE = Path(__file__).parent / "fit_cases.jsonl"


@cache
def _lines() -> tuple[str, ...]:
    return tuple(line for line in _FILE.read_text().splitlines() if line)


@cache
def _scored() -> tuple[ScoredCase, ...]:
    return tuple(read_case(line) for line in _lines())


def _row(name: str) -> dict[str, Any]:
    return next(row for line in _lines() if (row := msgspec.json.decode(line))["id"] == name)


def test_the_command_ends_with_one_line_of_figures_that_meet_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(_FILE)]) == 0
    told = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1])
    assert list(told) == ["scored", "skipped", "weights_gib", "kv_gib", "kv_tokens", "verdicts"]
    assert told["weights_gib"]["median_pct"] <= 0.5
    assert told["weights_gib"]["p90_pct"] <= 3
    assert told["kv_gib"]["median"] <= 0.4
    assert told["kv_gib"]["p90"] <= 1.5
    assert told["kv_tokens"]["median_pct"] <= 3
    assert told["verdicts"]["oom_called"] >= 0.9
    assert told["verdicts"]["ran_called_oom"] <= 0.05
    assert told["scored"] + sum(told["skipped"].values()) == len(_lines())


@pytest.mark.parametrize(
    ("term", "logged", "needs"),
    [
        ("weights_gib", "weights_gib_per_gpu", ("facts", "tp")),
        ("kv_gib", "kv_cache_gib_per_gpu", ("facts", "tp", "gpu_mem_gib")),
        ("kv_tokens", "kv_tokens", ("facts", "tp", "gpu_mem_gib")),
    ],
)
def test_rows_that_tell_enough_are_scored(term: str, logged: str, needs: tuple[str, ...]) -> None:
    rows = [(msgspec.json.decode(line), case) for line, case in zip(_lines(), _scored(), strict=True)]
    telling = [case for row, case in rows if row["observed"].get(logged) is not None and all(row[key] for key in needs)]
    assert sum(getattr(case, term) is not None for case in telling) >= 0.9 * len(telling) > 20


def test_no_source_carries_the_figures_alone() -> None:
    for source in {case.source for case in _scored()}:
        left = [case for case in _scored() if case.source != source]
        errors = sorted(relative(left, "weights_gib"))
        assert errors[len(errors) // 2] <= 0.5


def test_predictions_are_blind() -> None:
    for line in _lines():
        row = msgspec.json.decode(line)
        seen = predict(read_row(row))
        assert predict(read_row({key: value for key, value in row.items() if key != "observed"})) == seen
        row["observed"] = dict.fromkeys(row["observed"], 1.5)
        assert predict(read_row(row)) == seen
    first, second = _row("llmd-018"), _row("llmd-018")
    second["observed"]["weights_gib_per_gpu"] *= 2
    told, other = score(first).weights_gib, score(second).weights_gib
    assert told is not None
    assert other is not None
    assert told[0] == other[0]
    assert told[1] != other[1]


_JUNK = (None, "", 0, -1, 1.5, "abc", [], {}, True, 1e30, "8", "0.9", 10**12, "fp8", "H100", [1, 2])


def test_no_row_stops_the_command() -> None:
    choose = random.Random(7)
    for number in range(300):
        row = msgspec.json.decode(_lines()[number % len(_lines())])
        for name in choose.sample(sorted(row), 3):
            row[name] = choose.choice(_JUNK)
        row.pop(choose.choice(sorted(row)))
        row["new"] = choose.choice(_JUNK)
        case = read_case(msgspec.json.encode(row).decode())
        summary([case])
        assert not case.skipped.startswith("not understood")


@pytest.mark.parametrize("line", ["[]", "null", "{", "3", '{"facts": 5, "observed": 3}', "{}"])
def test_lines_that_are_no_case_are_counted(line: str) -> None:
    assert read_case(line).skipped in ("no JSON object", "no facts")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert main([]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_an_empty_file_has_no_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert main([str(empty)]) == 0
    assert msgspec.json.decode(capsys.readouterr().out.splitlines()[-1])["weights_gib"] == {
        "median_pct": None,
        "p90_pct": None,
    }


@pytest.mark.parametrize(
    ("words", "kind", "version", "v1"),
    [
        ("vLLM 0.19.0", "vllm", (0, 19, 0), None),
        ("vLLM V0 (2025-03-15)", "vllm", (0, 7, 3), False),
        ("vLLM (Jul 2024, ~0.5.3)", "vllm", (0, 5, 3), None),
        ("vLLM Dec 2023 (after PR)", "vllm", (0, 2, 3), None),
        ("vLLM 0.6.x (12-22)", "vllm", (0, 6, 5), None),
        ("vLLM 0.14.0rc2", "vllm", (0, 14, 0), None),
        ("vLLM (worker.py:295)", "vllm", (0, 8, 5), False),
        ("SGLang 0.5.17", "sglang", (0, 5, 17), None),
        ("ollama (llama.cpp)", "llama.cpp", (0, 22, 0), None),
        (None, "other", (0, 22, 0), None),
    ],
)
def test_engines(words: object, kind: str, version: tuple[int, ...], v1: bool | None) -> None:
    told = engine_of(words)
    assert (told.kind, told.version, told.v1) == (kind, version, v1)


@pytest.mark.parametrize(
    ("words", "name", "gib"),
    [
        ("NVIDIA H100 80GB x8", "NVIDIA H100 80GB HBM3", 79.19),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", 79.15),
        ("NVIDIA A100 40GB x4 (39.38 GiB reported)", "NVIDIA A100-SXM4-40GB", 39.38),
        ("2x RTX 4090", "NVIDIA GeForce RTX 4090", 23.55),
        ("NVIDIA A10 24GB", "NVIDIA A10", 22.07),
        ("H20-3e", "NVIDIA H20-3e", 139.72),
        ("some card of 24 GB", "some card of 24 GB", 24 * 0.982),
    ],
)
def test_gpus_by_loose_names(words: str, name: str, gib: float) -> None:
    told = gpu_of(words)
    assert told.name == name
    assert told.memory_gib == pytest.approx(gib)


def test_a_gpu_that_nothing_tells_of() -> None:
    assert gpu_of("8 GPUs (name not in excerpt)").memory_gib is None
    assert gpu_of(None).memory_gib is None


@pytest.mark.parametrize(
    ("quant", "model", "packing"),
    [
        ("bfloat16", "a/B", "model"),
        ("bfloat16+compressed-tensors", "RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8", "int8"),
        ("float16+gptq_marlin", "a/B", "gptq"),
        ("bfloat16+fp8", "a/B", "fp8"),
        ("GGUF Q4_K_M (4.98 BPW)", "a/B", "gguf:Q4_K_M"),
        ("bnb nf4", "a/B", "nf4-double"),
        ("unstated", "a/B-AWQ", "awq"),
        ("fp8/fp4 mixed", "a/B", None),
        (None, None, None),
    ],
)
def test_quantizations(quant: object, model: object, packing: str | None) -> None:
    assert packing_of(quant, model) == packing


@pytest.mark.parametrize("change", [lambda row: row.update(tp=4.0), lambda row: row.update(tp="4")])
def test_numbers_in_other_spellings(change: Callable[[dict[str, Any]], None]) -> None:
    row = _row("llmd-028")
    told = score(row)
    change(row)
    assert score(row) == told


def test_runs_that_were_looked_up_later_meet_the_targets() -> None:
    lines = (_FILE.parent / "fit_more.jsonl").read_text().splitlines()
    cases = [read_case(line) for line in lines]
    assert not any(case.skipped for case in cases)
    assert max(relative(cases, "weights_gib")) <= 3
    assert max(absolute(cases, "kv_gib")) <= 1.5
    assert max(relative(cases, "kv_tokens")) <= 3
    assert all(case.verdict in ("too large", "fragile") for case in cases if case.failed)
