"""Wishes become asks, and ways out become wishes."""

from __future__ import annotations

import pytest

from app.tui.fit.wishes import Wishes, contexts


def test_wishes_become_an_ask() -> None:
    ask = Wishes("m", goal="cost", context=65536, users=4, weights="int8", kv_format="fp8", price=2.5).ask(32768)
    assert (ask.context, ask.users, ask.goal, ask.weights, ask.kv_formats, ask.price) == (
        32768, 4, "cost", ("int8",), ("fp8",), 2.5,
    )  # fmt: skip


def test_what_is_left_open_is_left_to_the_planner() -> None:
    ask = Wishes("m").ask(131072)
    assert (ask.context, ask.weights, ask.kv_formats, ask.price) == (8192, (), (), None)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("--weights int8", Wishes(weights="int8")),
        ("--kv-format=fp8", Wishes(kv_format="fp8")),
        ("--kv-format k=fp8,v=int8", Wishes(kv_format="k=fp8,v=int8")),
        ("--max-context 4096", Wishes(context=4096)),
        ("--users 2 --context 2048", Wishes(users=2, context=2048)),
        ("--hardware '2x H100-80GB'", Wishes(hardware="2x H100-80GB")),
        ("--engine vllm", Wishes(engine="vllm")),
        ("", None),
        ("--engine other", None),
        ("--host-weights 4GiB", None),
        ("--weights", None),
        ("--users many", None),
        ("--weights 'int8", None),
    ],
)
def test_a_way_out_changes_what_a_control_can_change(option: str, changed: Wishes | None) -> None:
    assert Wishes().with_option(option) == changed


def test_contexts_double_and_end_with_the_models_own() -> None:
    assert contexts(8192) == (1024, 2048, 4096, 8192)
    assert contexts(40_960)[-2:] == (32_768, 40_960)
    assert contexts(512) == (512,)
    assert contexts(10_000_000)[-2:] == (1 << 20, 10_000_000)
