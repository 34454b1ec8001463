from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backend import uniform
from backend.batch import SampleTask
from backend.request import Sampling
from backend.sampler import Sampler
from backend.uniform import uniform64
from tests.fakes.slow_sampler import slow_sample

CPU = torch.device("cpu")


def task(prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **sampling: Any) -> SampleTask:
    return SampleTask(Sampling(**sampling), prompt, output)


def random_logits(rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def tokens_of(logits: torch.Tensor, *tasks: SampleTask) -> list[int | None]:
    return [choice.token for choice in Sampler(logits.shape[1], CPU).sample(logits, tasks)]


@st.composite
def sampling_tasks(draw: st.DrawFn, vocabulary: int) -> SampleTask:
    ids = st.integers(0, vocabulary - 1)
    penalties = st.sampled_from([0.0, 0.0, 0.7, -1.5])
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.05, 0.7, 1.0, 1.9])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.01])),
        top_k=draw(st.sampled_from([None, 1, 3, 10_000])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.4])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.8])),
        presence_penalty=draw(penalties),
        frequency_penalty=draw(penalties),
        logit_bias=draw(st.dictionaries(ids, st.floats(-8, 8), max_size=3)),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([None, None, 0, 4])),
        stop_tokens=tuple(draw(st.lists(ids, max_size=3))),
        min_tokens=draw(st.integers(0, 4)),
    )
    return SampleTask(sampling, draw(st.lists(ids, min_size=1, max_size=6)), draw(st.lists(ids, max_size=6)))


@given(st.data(), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_agrees_with_the_slow_sampler(data: st.DataObject, vocabulary: int, rows: int, seed: int) -> None:
    logits = random_logits(rows, vocabulary, seed)
    tasks = [data.draw(sampling_tasks(vocabulary)) for _ in range(rows)]
    before = logits.clone()
    choices = Sampler(vocabulary, CPU).sample(logits, tasks)
    assert torch.equal(logits, before)
    for row, one, choice in zip(logits.tolist(), tasks, choices, strict=True):
        slow = slow_sample(row, one)
        assume(slow.margin > 1e-6)
        assert choice.token == slow.token
        if choice.token is None or one.sampling.logprobs is None:
            assert choice.logprob is None
            assert choice.top == ()
            continue
        assert choice.logprob == pytest.approx(slow.logprobs[choice.token], abs=1e-4)
        best = sorted((value for value in slow.logprobs if value > -math.inf), reverse=True)
        assert [value for _, value in choice.top] == pytest.approx(best[: one.sampling.logprobs], abs=1e-4)
        assert all(value == pytest.approx(slow.logprobs[token], abs=1e-4) for token, value in choice.top)


@given(st.data(), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_choice_does_not_depend_on_the_batch(data: st.DataObject, seed: int) -> None:
    logits = random_logits(6, 300, seed)
    tasks = [data.draw(sampling_tasks(300)) for _ in range(6)]
    sampler = Sampler(300, CPU)
    together = sampler.sample(logits, tasks)
    order = data.draw(st.permutations(range(6)))
    shuffled = sampler.sample(logits[list(order)], [tasks[row] for row in order])
    for place, row in enumerate(order):
        assert shuffled[place] == together[row]
        assert sampler.sample(logits[row : row + 1], [tasks[row]]) == [together[row]]


def test_blocks_of_rows_choose_like_single_rows() -> None:
    logits = random_logits(9, 2000)
    tasks = [task(temperature=0.5 + row / 10, top_p=0.95, seed=row, logprobs=row % 3) for row in range(9)]
    single, blocks = Sampler(2000, CPU), Sampler(2000, CPU)
    blocks._block_rows, blocks._on_cpu = 4, False  # what a GPU does
    assert blocks.sample(logits, tasks) == single.sample(logits, tasks)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-5.0, -math.inf, -7.0, -5.0]])
    assert tokens_of(logits, task(), task()) == [1, 0]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"logprobs": 2}, {"logit_bias": {1: 5.0}}])
def test_logits_that_are_not_finite_give_no_token(options: dict[str, Any]) -> None:
    nan, infinite = math.nan, math.inf
    rows = [
        [1.0, nan, 2.0],
        [1.0, infinite, 2.0],
        [-infinite] * 3,
        [1.0, -infinite, 2.0],
        [infinite, nan, 0.0],
    ]
    tokens = tokens_of(torch.tensor(rows), *[task(**options) for _ in rows])
    assert [token is None for token in tokens] == [True, True, True, False, True]


def test_an_infinite_logit_is_not_hidden_by_held_back_stop_tokens() -> None:
    held = task(stop_tokens=(1,), min_tokens=5)
    assert tokens_of(torch.tensor([[0.0, math.inf], [0.0, 9.0]]), held, held) == [None, 0]


def test_nothing_left_to_choose_gives_no_token() -> None:
    assert tokens_of(torch.zeros(1, 2), task(stop_tokens=(0, 1), min_tokens=1, temperature=1.0)) == [None]


def test_stop_tokens_are_held_back_only_until_min_tokens() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]] * 2)
    early = task(stop_tokens=(2,), min_tokens=2, output=(0,))
    late = task(stop_tokens=(2,), min_tokens=2, output=(0, 0))
    assert tokens_of(logits, early, late) == [1, 2]


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    stray = task(logit_bias={2: 4.0, 99: 50.0}, stop_tokens=(0, 99), min_tokens=3)
    assert tokens_of(torch.tensor([[3.0, 2.0, 1.0]]), stray) == [2]


def test_logprobs_are_those_of_log_softmax_before_temperature_and_filters() -> None:
    logits = random_logits(1, 49152)
    asked = task(temperature=0.3, top_k=2, logprobs=5, logit_bias={7: 4.0}, seed=3)
    choice = Sampler(49152, CPU).sample(logits, [asked])[0]
    logits[0, 7] += 4.0
    expected = torch.log_softmax(logits[0], dim=0)
    assert choice.token is not None
    assert choice.logprob == pytest.approx(float(expected[choice.token]), abs=1e-6)
    assert [token for token, _ in choice.top] == expected.topk(5).indices.tolist()
    assert [value for _, value in choice.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-6)


def test_top_logprobs_order_equal_tokens_by_id() -> None:
    choice = Sampler(6, CPU).sample(torch.tensor([[0.0, 5.0, 5.0, 0.0, 5.0, 0.0]]), [task(logprobs=4)])[0]
    assert [token for token, _ in choice.top] == [1, 2, 4, 0]


@pytest.mark.parametrize(
    "filters",
    [{"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.7, "min_p": 0.02}],
    ids=str,
)
def test_filters_keep_what_the_warpers_of_transformers_keep(filters: dict[str, Any]) -> None:
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = random_logits(1, 60, seed=5, scale=1.0)
    no_ids: Any = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(0.9)(no_ids, logits)
    for name, warper in (
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ):
        if name in filters:
            scores = warper(filters[name])(no_ids, scores)
    draws = 1500
    tasks = [task(temperature=0.9, seed=seed, **filters) for seed in range(draws)]
    counts = Counter(tokens_of(logits.expand(draws, 60).contiguous(), *tasks))
    assert {token for token in counts if token is not None} <= set(scores.isfinite()[0].nonzero().flatten().tolist())
    _assert_distributed(counts, torch.softmax(scores[0].double(), dim=0).numpy(), draws)


def test_draws_follow_the_distribution() -> None:
    logits, draws = random_logits(1, 200, seed=2, scale=1.5), 2500
    tasks = [task(temperature=1.3, seed=11, output=(0,) * index) for index in range(40)]
    tasks += [task(temperature=1.3, seed=seed) for seed in range(1000, 1000 + draws - len(tasks))]
    counts = Counter(tokens_of(logits.expand(draws, 200).contiguous(), *tasks))
    _assert_distributed(counts, torch.softmax(logits[0].double() / 1.3, dim=0).numpy(), draws)


def _assert_distributed(counts: Counter[int | None], expected: np.ndarray, draws: int) -> None:
    """Chi-square against the expected shares, rare tokens pooled; fixed seeds make the outcome fixed."""
    likely = [token for token in range(len(expected)) if expected[token] * draws >= 10]
    observed = np.array([counts[token] for token in likely] + [draws - sum(counts[token] for token in likely)])
    share = np.append(expected[likely], max(1.0 - expected[likely].sum(), 1e-9)) * draws
    statistic = float((((observed - share) ** 2) / np.maximum(share, 1.0)).sum())
    degrees = len(likely)
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


def test_draws_depend_on_seed_and_index_only() -> None:
    logits = random_logits(1, 500, scale=1.0)
    first = [tokens_of(logits, task(temperature=1.0, seed=5, output=(1,) * index)) for index in range(30)]
    again = [
        tokens_of(logits, task(temperature=1.0, seed=5, prompt=(3, 4), output=(2,) * index)) for index in range(30)
    ]
    other = [tokens_of(logits, task(temperature=1.0, seed=6, output=(1,) * index)) for index in range(30)]
    assert first == again
    assert first != other
    assert len({token for (token,) in first}) > 10


def test_flat_and_peaked_distributions_are_drawn_from_below_every_cut() -> None:
    peaked = torch.full((1, 1000), -18.0)  # 50 likeliest tokens reach far below the first cut
    peaked[0, 3] = 0.0
    choices = {tokens_of(peaked, task(temperature=1.0, top_k=50, min_p=1e-12, seed=seed))[0] for seed in range(20)}
    assert choices == {3}
    flat = torch.zeros(1, 1000)
    drawn = {tokens_of(flat, task(temperature=2.0, seed=seed))[0] for seed in range(300)}
    assert len(drawn) > 200
    assert max(token for token in drawn if token is not None) > 900


def test_the_lowest_temperature_is_greedy() -> None:
    logits = random_logits(1, 100)
    assert tokens_of(logits, task(temperature=1e-300, seed=1)) == tokens_of(logits, task())


def test_uniform64_is_splitmix64() -> None:
    # First outputs of Vigna's splitmix64.c for the state 1234567, as published with Rosetta Code's task.
    state = 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    outputs = []
    for step in range(1, 4):
        outputs.append(uniform._mix((state + step * uniform._GAMMA) & uniform._MASK))
    assert outputs == published
    assert uniform64(1, 0) != uniform64(0, 1)
    assert all(0 <= uniform64(seed, 3) < 2**64 for seed in (0, 2**64 - 1, -5))


def test_the_greedy_path_costs_little() -> None:
    logits = random_logits(16, 49152)
    tasks = [task(output=tuple(range(100)), stop_tokens=(2,)) for _ in range(16)]
    sampler = Sampler(49152, CPU)
    best = math.inf
    for _ in range(30):
        begin = time.perf_counter()
        sampler.sample(logits, tasks)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.002  # 0.1 ms on the machine this was written on; torch's own argmax alone takes 1 ms there


def test_a_mismatch_of_rows_and_tasks_is_a_bug_that_shows() -> None:
    with pytest.raises(ValueError, match="tasks"):
        Sampler(4, CPU).sample(torch.zeros(2, 4), [task()])
    assert Sampler(4, CPU).sample(torch.zeros(0, 4), []) == []
