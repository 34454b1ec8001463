from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.client import ServerAnswerError, ServerUnreachableError
from app.commands.bench import bench
from backend.errors import SettingError
from tests.fakes.completion_server import CompletionServer
from tests.fakes.fake_server import serving

OWN = ("--concurrency", "3", "--requests", "6", "--prompt-tokens", "9", "--output-tokens", "5", "--no-warm-up")


def run_bench(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout


def test_a_load_of_ones_own_is_measured() -> None:
    server = CompletionServer(delay=0.01)
    with serving(server):
        status, output = run_bench("--url", server.url, *OWN, "--shared-prefix-tokens", "20", "--runs", "2", "--json")
    report = json.loads(output)
    assert (status, report["model"], report["length_forced"]) == (0, "fake/model", True)
    first, second = report["runs"]["own"]
    assert (first["answered"], first["failed"], first["wrong_length"]) == (6, 0, 0)
    assert first["output_tokens"] == 30
    assert first["prompt_tokens"] == 6 * 29
    assert first["tpot"]["p50"] >= 9.9
    assert first["itl"]["p50"] >= 9.9
    assert first["ttft"]["p50"] >= 10
    assert first["output_per_second"] == pytest.approx(30 / first["wall_seconds"])
    rates = sorted(run["output_per_second"] for run in (first, second))
    middle = report["figures"]["own"]["output_per_second"]
    assert (middle["low"], middle["high"]) == pytest.approx(rates)
    assert middle["median"] == pytest.approx(sum(rates) / 2)
    assert server.most == 3
    prompts = [body["prompt"] for body in server.requests if body["max_tokens"] == 5]
    assert len(set(prompts)) == 12
    assert len({" ".join(prompt.split()[:20]) for prompt in prompts}) == 2  # one prefix a run
    assert all(len(prompt.split()) == 29 for prompt in prompts)
    assert {body["min_tokens"] for body in server.requests if body["max_tokens"] == 5} == {5}


def test_the_standard_workloads_have_their_shapes_and_a_table() -> None:
    with serving(CompletionServer()) as server:
        status, output = run_bench("single", "ttft", "--url", server.url, "--runs", "1", "--no-warm-up")
    rows = {line.split()[0]: line.split() for line in output.splitlines()}
    assert status == 0
    assert {"workload", "single", "ttft_cold", "ttft_warm"} <= set(rows)
    assert rows["ttft_cold"][-2:] == ["0", "0"]
    assert rows["ttft_warm"][-2:] == ["2048", "0"]
    shapes = [(len(body["prompt"].split()), body["max_tokens"]) for body in server.requests[1:]]
    assert shapes == [(128, 128), (2048, 8), (2048, 8)]


def test_a_server_that_refuses_extra_fields_is_asked_without_them() -> None:
    with serving(CompletionServer(refused_fields=("ignore_eos", "stream_options"), tokenizes=False)) as server:
        status, output = run_bench("--url", server.url, *OWN, "--runs", "1", "--json", "--endpoint", "chat")
    report = json.loads(output)
    assert status == 0
    assert report["length_forced"] is False
    assert report["runs"]["own"][0]["output_tokens"] == 30  # counted by chunks
    assert "ignore_eos" not in server.requests[-1]
    assert server.requests[-1]["messages"][0]["role"] == "user"


def test_answers_without_an_end_fail_the_command() -> None:
    server = CompletionServer()
    with serving(server):
        server.cut_from = 5
        status, output = run_bench("--url", server.url, *OWN, "--runs", "1")
        assert status == 1
        assert output.splitlines()[1].split()[-1] == "6"
        assert "own: the stream ended without a finish" in output
        server.cut_from = 1
        with pytest.raises(ServerAnswerError, match="without a finish"):
            run_bench("--url", server.url, *OWN, "--runs", "1")


def test_a_key_is_sent_and_a_missing_one_is_explained() -> None:
    with serving(CompletionServer(key="secret")) as server:
        assert run_bench("--url", server.url + "/v1", *OWN, "--runs", "1", "--key", "secret")[0] == 0
        with pytest.raises(ServerAnswerError, match="401"):
            run_bench("--url", server.url, *OWN, "--model", "fake/model")


def test_no_server_and_no_such_workload_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachableError, match="No server answers"):
        run_bench("--url", "http://127.0.0.1:9", *OWN)
    with pytest.raises(SettingError, match="conc16"):
        run_bench("everything")
    with pytest.raises(SettingError, match=r"tokenizer\.json"):
        run_bench("--tokenizer", str(tmp_path), *OWN)
