"""Scheduler: the rule, case by case. Random schedules are in test_scheduler_schedules."""

from __future__ import annotations

import re

import pytest

from backend.batch import Batch, Sampled
from backend.errors import SettingError
from backend.events import End, Token
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import Keeps, LayerCache, build_layout

LAYOUT = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4),), 2, page_tokens=4)


def scheduler(
    *,
    pages: int = 100,
    max_context: int = 100,
    max_sequences: int = 8,
    step_tokens: int = 16,
    recompute_lengths: tuple[int, ...] = (),
) -> Scheduler:
    return Scheduler(
        CacheManager(LAYOUT, pages),
        max_context=max_context,
        max_sequences=max_sequences,
        step_tokens=step_tokens,
        recompute_lengths=recompute_lengths,
    )


def request(
    name: str,
    prompt: int = 3,
    *,
    prior: tuple[int, ...] = (),
    priority: int = 0,
    timeout: float | None = None,
    stop_tokens: tuple[int, ...] = (),
    min_tokens: int = 0,
    max_tokens: int = 50,
    salt: bytes | None = None,
) -> Request:
    """Requests share no pages unless their salt is the same."""
    return Request(
        id=name,
        prompt=tuple(range(prompt)),
        prior=prior,
        cache_salt=name.encode() if salt is None else salt,
        priority=priority,
        timeout=timeout,
        sampling=Sampling(stop_tokens=stop_tokens, min_tokens=min_tokens, max_tokens=max_tokens),
    )


def shape(batch: Batch) -> list[tuple[int, int, int]]:
    """(sequence, start, tokens) of each slice."""
    return [(part.sequence, part.start, len(part.tokens)) for part in batch.slices]


def step(target: Scheduler, token: int | None = 7, now: float = 0.0) -> tuple[Batch, list[Token], list[End]]:
    batch = target.schedule(now)
    tokens, ends = target.commit(batch, [Sampled(token) if part.sample else None for part in batch.slices])
    target.check_integrity()
    return batch, tokens, ends


def run(target: Scheduler) -> tuple[list[list[tuple[int, int, int]]], list[Token], list[End]]:
    """Steps until nothing is left."""
    shapes, tokens, ends = [], [], []
    while target.has_work:
        batch, new, ended = step(target)
        shapes.append(shape(batch))
        tokens += new
        ends += ended
    return shapes, tokens, ends


def test_decodes_come_first_and_prompts_fill_the_budget_in_slices():
    target = scheduler(step_tokens=10)
    target.add(request("a", 4), 0)
    target.add(request("b", 13), 0)
    target.add(request("c", 9), 0)
    assert shape(step(target)[0]) == [(0, 0, 4), (1, 0, 6)]
    assert shape(step(target)[0]) == [(0, 4, 1), (1, 6, 7), (2, 0, 2)]
    batch, tokens, _ = step(target)
    assert shape(batch) == [(0, 5, 1), (1, 13, 1), (2, 2, 7)]
    assert [(token.request, token.index) for token in tokens] == [("a", 2), ("b", 1), ("c", 0)]


def test_slices_carry_their_tokens_and_both_lengths():
    target = scheduler(step_tokens=4)
    target.add(request("a", 3, prior=(50, 51, 52)), 0)
    (first,) = step(target)[0].slices
    assert (tuple(first.tokens), first.prompt_length, first.length) == ((0, 1, 2, 50), 3, 6)
    assert first.sample is None
    (second,) = target.schedule(0).slices
    assert (tuple(second.tokens), second.prompt_length, second.length) == ((51, 52), 3, 6)
    assert second.sample is not None
    assert tuple(second.sample.output) == (50, 51, 52)
    assert (second.spans[0].first, len(second.spans[0].ids)) == (0, 2)


def test_the_smaller_priority_is_admitted_first_then_the_earlier():
    target = scheduler(max_sequences=2)
    for name, priority in (("a", 5), ("b", 1), ("c", 5), ("d", 1)):
        target.add(request(name, priority=priority, max_tokens=1), 0)
    assert [token.request for token in step(target)[1]] == ["b", "d"]
    assert [token.request for token in step(target)[1]] == ["a", "c"]


def test_no_more_sequences_run_than_a_step_has_tokens():
    target = scheduler(max_sequences=8, step_tokens=2)
    for name in "abc":
        target.add(request(name, 1), 0)
    assert shape(step(target)[0]) == [(0, 0, 1), (1, 0, 1)]
    assert shape(step(target)[0]) == [(0, 1, 1), (1, 1, 1)]


def test_the_last_arrived_gives_its_pages_up_and_goes_on_where_they_are_still_cached():
    target = scheduler(pages=5, max_context=20)
    target.add(request("old", 4, max_tokens=9), 0)
    target.add(request("new", 4, max_tokens=9), 0)
    shapes, tokens, ends = run(target)
    # Two full pages each, and one free: the old one gets it, and the new one waits until its own nine tokens fit.
    # Nobody needed the place of its full pages.
    assert shapes[4:10] == [
        [(0, 7, 1), (1, 7, 1)],
        [(0, 8, 1)],
        [(0, 9, 1)],
        [(0, 10, 1)],
        [(0, 11, 1)],
        [(1, 8, 1)],
    ]
    assert target.statistics().preemptions == 1
    assert [token.index for token in tokens if token.request == "new"] == list(range(9))
    assert ends == [End("old", "length"), End("new", "length")]


def test_priority_decides_who_is_preempted():
    target = scheduler(pages=5, max_context=20)
    target.add(request("batch job", 4, priority=9, max_tokens=9), 0)
    target.add(request("person", 4, priority=0, max_tokens=9), 0)
    shapes, _, ends = run(target)
    assert shapes[5] == [(1, 8, 1)]
    assert ends == [End("person", "length"), End("batch job", "length")]


def test_a_prompt_takes_back_what_a_later_decode_was_given_in_the_same_step():
    target = scheduler(pages=6, max_context=24, recompute_lengths=(12,))
    target.add(request("early", 9, max_tokens=6), 0)
    target.add(request("late", 5, max_tokens=6), 0)
    shapes, _, _ = run(target)
    assert shapes[3] == [(0, 11, 1), (1, 7, 1)]
    # Here the early one is computed again and needs four pages. The late one, as a decode, had just taken a third.
    assert shapes[4] == [(0, 0, 13)]
    assert target.statistics().preemptions == 1


def test_a_prompt_is_not_admitted_into_pages_that_another_prompt_will_need():
    target = scheduler(pages=8, max_context=24, step_tokens=8)
    target.add(request("long", 20, max_tokens=1), 0)
    target.add(request("short", 8, max_tokens=1), 0)
    shapes, _, _ = run(target)
    assert shapes == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)], [(1, 0, 8)]]
    assert target.statistics().preemptions == 0


def test_an_answer_ends_with_a_stop_token_after_the_least_number_of_tokens():
    target = scheduler()
    target.add(request("a", stop_tokens=(7,), min_tokens=2), 0)
    ends = [step(target)[2] for _ in range(3)]
    assert ends == [[], [], [End("a", "stop")]]
    assert not target.has_work


@pytest.mark.parametrize(("max_tokens", "max_context", "expected"), [(3, 100, 3), (50, 8, 5)])
def test_an_answer_ends_at_its_length_and_at_the_context(max_tokens: int, max_context: int, expected: int):
    target = scheduler(max_context=max_context)
    target.add(request("a", 3, max_tokens=max_tokens), 0)
    _, tokens, ends = run(target)
    assert len(tokens) == expected
    assert ends == [End("a", "length")]


def test_prior_tokens_count_and_are_not_told_again():
    target = scheduler()
    target.add(request("a", prior=(1, 2), max_tokens=3), 0)
    _, tokens, ends = step(target)
    assert tokens == [Token("a", 2, 7)]
    assert ends == [End("a", "length")]


def test_a_request_that_was_complete_before_ends_without_a_token():
    target = scheduler()
    target.add(request("long", prior=(1, 2), max_tokens=2), 0)
    target.add(request("stopped", prior=(1, 9), stop_tokens=(9,)), 0)
    batch, tokens, ends = step(target)
    assert (batch.slices, tokens) == ((), [])
    assert ends == [End("long", "length"), End("stopped", "stop")]


@pytest.mark.parametrize(
    ("prompt", "pages", "words"),
    [(0, 100, "empty"), (40, 100, "40 tokens.*context of 40"), (20, 4, "20 tokens.*at most 16")],
)
def test_what_can_never_run_ends_with_the_reason(prompt: int, pages: int, words: str):
    target = scheduler(pages=pages, max_context=40)
    target.add(request("a", prompt), 0)
    _, _, (end,) = step(target)
    assert end.reason == "error"
    assert re.search(words, end.message)
    assert not target.has_work


def test_a_sequence_ends_at_what_the_pool_holds_of_it_alone():
    target = scheduler(pages=2, max_context=100)
    assert target.longest_sequence == 8
    target.add(request("a", 3), 0)
    _, tokens, ends = run(target)
    assert len(tokens) == 5
    assert ends == [End("a", "length")]


def test_cancellation_ends_waiting_and_running_ones_at_the_next_step():
    target = scheduler(max_sequences=1)
    target.add(request("a"), 0)
    target.add(request("b"), 0)
    step(target)
    for name in ("a", "b", "unknown", "a"):
        target.cancel(name)
    batch, _, ends = step(target)
    assert batch.slices == ()
    assert ends == [End("a", "cancelled"), End("b", "cancelled")]
    assert target.statistics().cache.pages_used == 0


def test_a_cancellation_does_not_reach_a_later_request_of_the_same_id():
    target = scheduler()
    target.add(request("a", max_tokens=1), 0)
    batch = target.schedule(0)
    target.cancel("a")
    assert target.commit(batch, [Sampled(1)])[1] == [End("a", "length")]
    target.add(request("a", max_tokens=1), 0)
    assert step(target)[2] == [End("a", "length")]


def test_deadlines_count_from_arrival():
    target = scheduler(max_sequences=1)
    target.add(request("slow", timeout=5.0), 10.0)
    target.add(request("waits", timeout=2.0), 10.0)
    assert step(target, now=11.9)[2] == []
    assert step(target, now=12.0)[2] == [End("waits", "deadline")]
    assert step(target, now=15.0)[2] == [End("slow", "deadline")]
    assert not target.has_work


def test_logits_that_are_not_finite_end_only_their_request():
    target = scheduler()
    target.add(request("bad"), 0)
    target.add(request("good", max_tokens=1), 0)
    batch = target.schedule(0)
    tokens, ends = target.commit(batch, [Sampled(None), Sampled(3)])
    assert tokens == [Token("good", 0, 3)]
    assert [(end.request, end.reason) for end in ends] == [("bad", "error"), ("good", "length")]
    assert "not finite" in ends[0].message
    assert target.statistics().nan_requests == 1


def test_a_sequence_that_outgrows_a_recompute_length_starts_again_once():
    target = scheduler(recompute_lengths=(5,))
    target.add(request("a", 3, max_tokens=6), 0)
    assert [shape(step(target)[0]) for _ in range(6)] == [
        [(0, 0, 3)],
        [(0, 3, 1)],
        [(0, 4, 1)],
        [(0, 0, 6)],
        [(0, 6, 1)],
        [(0, 7, 1)],
    ]


def test_a_prompt_past_a_recompute_length_is_computed_once():
    target = scheduler(recompute_lengths=(5,))
    target.add(request("a", 6, max_tokens=2), 0)
    assert [shape(step(target)[0]) for _ in range(2)] == [[(0, 0, 6)], [(0, 6, 1)]]


def test_statistics_count_each_prompt_and_token_once():
    target = scheduler(recompute_lengths=(5,))
    target.add(request("a", 3, max_tokens=6), 0)
    target.add(request("b", 4, max_tokens=1), 0)
    run(target)
    statistics = target.statistics()
    assert (statistics.prompt_tokens, statistics.generation_tokens) == (7, 7)
    assert (statistics.running, statistics.waiting, statistics.cache.pages_used) == (0, 0, 0)
    assert (statistics.cache.pages_total, statistics.cache.page_bytes, statistics.steps) == (100, 4 * 16, 6)


def test_an_id_is_live_once():
    target = scheduler()
    target.add(request("a"), 0)
    with pytest.raises(ValueError, match="'a' is live"):
        target.add(request("a"), 0)


def test_limits_that_serve_nothing_are_refused():
    with pytest.raises(SettingError, match="max-context is 1"):
        scheduler(max_context=1)
    layers = (LayerCache(Keeps.FULL, None, 1, 4, 4), LayerCache(Keeps.SLIDING, 4, 1, 4, 4))
    with pytest.raises(SettingError, match="It has 1 pages, and a sequence of two tokens needs 2"):
        Scheduler(CacheManager(build_layout(layers, 2), 1), max_context=9, max_sequences=1, step_tokens=1)


def test_results_that_do_not_fit_the_batch_are_our_own_bug():
    target = scheduler()
    target.add(request("a"), 0)
    batch = target.schedule(0)
    with pytest.raises(RuntimeError, match="sampled None"):
        target.commit(batch, [None])
