from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.load.figures import figures, measure, over_runs, percentile
from app.load.prompts import PromptMaker, bundled_words
from app.load.server import Answer
from app.load.workload import Workload


def answer(first: float, last: float, tokens: int, **more: object) -> Answer:
    return Answer(first=first, last=last, latency=last, output_tokens=tokens, **more)  # pyright: ignore[reportArgumentType]


def test_figures_follow_their_definitions() -> None:
    answers = [
        answer(0.1, 1.1, 11, gaps=(0.4, 0.6), prompt_tokens=7, cached_tokens=3),
        answer(0.3, 0.8, 6, gaps=(0.5,), prompt_tokens=7),
        Answer(error="HTTP 500: x", status=500),
    ]
    run = figures(answers, 11, wall=2.0)
    assert (run.answered, run.failed, run.wrong_length) == (2, 1, 1)
    assert run.output_per_second == 17 / 2.0
    assert (run.prompt_tokens, run.cached_tokens) == (14, 3)
    assert measure(run, "ttft_p50") == pytest.approx(200)
    assert measure(run, "tpot_p50") == pytest.approx(100)
    assert measure(run, "itl_p50") == pytest.approx(500)
    assert run.errors == ("HTTP 500: x",)
    assert over_runs([run, figures([], 1, 1.0)])["output_per_second"].median == pytest.approx(17 / 4)


def test_no_answer_has_no_figures() -> None:
    assert list(over_runs([figures([], 8, 1.0)])) == ["output_per_second"]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_lie_between_the_values(values: list[float], share: float) -> None:
    ordered = sorted(values)
    assert ordered[0] - 1e-6 <= percentile(ordered, share) <= ordered[-1] + 1e-6
    assert percentile(ordered, 100) == ordered[-1]


async def letters(text: str) -> int:
    return (len(text) + 3) // 4


@pytest.mark.parametrize("seed", ["1", "2", "3"])
async def test_prompts_reach_their_length_and_never_pass_it(seed: str) -> None:
    workload = Workload(
        name="w", concurrency=1, requests=5, prompt_tokens=64, output_tokens=1, shared_prefix_tokens=100
    )
    prompts = await PromptMaker(bundled_words(), seed, letters).make(workload)
    again = await PromptMaker(bundled_words(), seed, letters).make(workload)
    assert prompts == again
    assert all([162 <= await letters(prompt) <= 164 for prompt in prompts])
    shared = len("".join(a for a, *others in zip(*prompts, strict=False) if set(others) == {a}))
    assert shared >= 390
    assert len({prompt[420:] for prompt in prompts}) == 5


async def test_without_a_counter_words_are_counted() -> None:
    prompt = await PromptMaker(bundled_words(), "0", None).grow("", 100)
    assert len(prompt.split()) == 75
