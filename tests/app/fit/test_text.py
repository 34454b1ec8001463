"""A report as text: 80 columns, verdicts in words, terms under each other, devices that are alike together."""

from __future__ import annotations

import pytest

from app.fit.text import as_text, plan_outlook
from backend.errors import SettingError
from backend.planner.fit.ask import FitAsk
from tests.fakes.reports import WAYS, plan, report, speed, too_large, use


def section(text: str, title: str) -> list[str]:
    """The lines of the block that opens with `title`."""
    block = next(block for block in text.split("\n\n") if block.startswith(title))
    return block.splitlines()


def test_everything_stands_within_80_columns_also_where_all_columns_are_full() -> None:
    wide = plan(
        replicas=16,
        tensor=16,
        stages=16,
        experts="expert",
        largest_context=10_485_760,
        concurrency=100_000,
        weights="model",
        kv_format="model",
    )
    text = as_text(report(wide, too_large(), ways_out=WAYS), 8, bars=True)
    assert max(map(len, text.splitlines())) <= 80


def test_the_head_says_the_verdict_in_words() -> None:
    head = as_text(report(), 8).splitlines()
    assert "verdict   fits with margin. 34.1 GiB are left for keys and values." in head
    none = as_text(report(too_large()), 8)
    assert "verdict   does not fit. The weights take 131 GiB of the 75 GiB usable." in none


def test_a_plan_is_a_line_and_one_that_does_not_fit_has_no_speed() -> None:
    lines = section(as_text(report(plan(), too_large()), 8), "plans, best first")
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "# layout formats verdict context users first token tok/s $/1M run",
        "1 2x1x1 model roomy 131,072 54 92 ms 21 ms 1,234 2.31 yes",
        "2 1x1x1 model too large - - - - - - no",
    ]


def test_plans_beyond_those_asked_for_are_counted() -> None:
    text = as_text(report(plan(), plan(tensor=1), plan(tensor=4)), 1)
    assert "(2 more: --plans 3)" in text
    assert "4x1x1" not in text


def test_the_fullest_devices_terms_add_up() -> None:
    uneven = plan(devices=(use(0, {"weights": 60, "kv": 6}, unused=9), use(1, {"weights": 70, "kv": 4}, unused=1)))
    head, row = (line.split() for line in section(as_text(report(uneven), 8), "memory of the fullest")[1:])
    assert head == ["#", "weights", "kv", "sum", "usable", "of"]
    assert row == ["1", "70.0", "4.00", "74.0", "75.0", "79.0"]


def test_devices_that_are_alike_stand_together_and_others_apart() -> None:
    same = {"weights": 60.0, "kv": 6.0}
    devices = (use(0, same), use(1, same), use(2, {"weights": 20.0}), use(3, same))
    lines = [" ".join(line.split()) for line in section(as_text(report(plan(devices=devices)), 8), "plan 1")]
    assert lines[1:5] == [
        "NVIDIA H100 80GB HBM3",
        "GPU stage weights kv unused kept of",
        "0-1,3 0 60.0 6.00 4.00 4.00 79.0",
        "2 0 20.0 0 4.00 4.00 79.0",
    ]


def test_machines_are_named_where_there_are_several() -> None:
    devices = tuple(use(gpu, {"weights": 30.0}, machine=machine) for machine in (0, 1) for gpu in (0, 1))
    assert "  0:0-1 1:0-1" in as_text(report(plan(devices=devices)), 8)


def test_the_plan_that_is_told_of_is_listed_too() -> None:
    plans = [plan(runnable=False), plan(runnable=False, tensor=4), plan(tensor=8)]
    text = as_text(report(*plans, best=2), 1)
    assert [line.split()[0] for line in section(text, "plans")[2:4]] == ["1", "3"]
    assert section(text, "plan 3")[0] == "plan 3: tensor 8, weights model, kv model"
    assert section(as_text(report(*plans, best=2), 1, number=2), "plan 2")


def test_a_plan_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingError, match="There are 1"):
        as_text(report(), 8, number=2)


def test_bars_are_drawn_only_where_asked_for() -> None:
    assert "█" in as_text(report(), 8, bars=True)
    assert as_text(report(), 8).isascii()


def test_what_runs_the_plan_is_shown_where_it_can_be_run() -> None:
    assert "  shardwise serve maker/large-70B --tp 2" in as_text(report(), 8).splitlines()
    blocked = plan(runnable=False, blocked="stages are not run by this version")
    text = as_text(report(blocked), 8)
    assert "shardwise serve" not in text
    assert "Not run by this version: stages are not run by this version" in " ".join(text.split())


def test_ways_out_say_the_option_and_what_it_gives() -> None:
    ways = section(as_text(report(too_large(), ways_out=WAYS), 8), "ways out")
    assert ways[1] == "  - Store the weights as int8 (--weights int8): a context of 8,192 for 4 users."


def test_the_price_has_its_source_and_date() -> None:
    notes = section(as_text(report(), 8), "notes")
    assert notes[-1] == "  - Cost is for $2.29 a GPU and hour (Verda; of 2026); --price sets it."


def test_what_steers_a_terminal_is_taken_out_of_names() -> None:
    assert "\x1b" not in as_text(report(model="evil/\x1b]0;title\x07model"), 8)


def test_a_plan_that_serve_takes_has_its_verdict_and_times_and_says_where_to_read_more() -> None:
    lines = plan_outlook("maker/large-70B", plan()).splitlines()
    assert lines[0] == "verdict   fits with margin. 34.1 GiB are left for keys and values."
    assert "  token to token 21 ms (17 ms to 27 ms); alone 20 ms" in lines
    assert any("`shardwise fit maker/large-70B`" in line for line in lines)


def test_layers_in_host_memory_are_what_a_step_waits_for() -> None:
    hosted = plan(hosted=9, speed=speed(bound="link", communication=0))
    text = " ".join(as_text(report(hosted), 8).split())
    assert "a step waits for copies from host memory; nothing is sent between GPUs" in text
    assert "model+host" in text


def test_vllms_plans_are_run_by_vllm() -> None:
    ask = FitAsk(context=8192, engine="vllm", engine_version="0.22.0")
    options = ("--tensor-parallel-size", "2")
    text = as_text(report(plan(runnable=False, blocked="we do not start it", options=options), ask=ask), 8)
    assert "  vllm serve maker/large-70B --tensor-parallel-size 2" in text.splitlines()
    assert "Not run by this version" not in text
