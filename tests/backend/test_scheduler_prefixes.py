"""Scheduler: what is shared between equal prefixes, and who waits for whom. Random schedules are elsewhere."""

from __future__ import annotations

import pytest

from backend.batch import Batch, Sampled
from backend.events import Start
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout

FULL = LayerCache(Keeps.FULL, None, 1, 4, 4)
LAYOUT = build_layout((FULL,), 2, page_tokens=4)
SYSTEM = tuple(range(100, 112))


def scheduler(
    *,
    layout: CacheLayout = LAYOUT,
    pages: int = 100,
    step_tokens: int = 16,
    max_sequences: int = 8,
    recompute_lengths: tuple[int, ...] = (),
    scaled_past: int | None = None,
) -> Scheduler:
    return Scheduler(
        CacheManager(layout, pages),
        max_context=100,
        max_sequences=max_sequences,
        step_tokens=step_tokens,
        recompute_lengths=recompute_lengths,
        scaled_past=scaled_past,
    )


def request(name: str, *prompt: int, tokens: int = 1, salt: bytes = b"", priority: int = 0) -> Request:
    return Request(id=name, prompt=prompt, sampling=Sampling(max_tokens=tokens), cache_salt=salt, priority=priority)


def shape(batch: Batch) -> list[tuple[int, int, int]]:
    """(sequence, start, tokens) of each slice."""
    return [(part.sequence, part.start, len(part.tokens)) for part in batch.slices]


def step(target: Scheduler, token: int | None = 7) -> list[tuple[int, int, int]]:
    batch = target.schedule(0.0)
    target.commit(batch, [Sampled(token) if part.sample else None for part in batch.slices])
    target.check_integrity()
    return shape(batch)


def run(target: Scheduler, *requests: Request) -> list[Start]:
    """Adds them, and steps until nothing is left."""
    for one in requests:
        target.add(one, 0.0)
    while target.has_work:
        step(target)
    return target.take_starts()


def cached(target: Scheduler, one: Request) -> int:
    """Of this request, run alone, how many tokens were cached."""
    (start,) = run(target, one)
    return start.cached_tokens


def test_a_prefix_is_computed_once_up_to_its_last_full_page():
    target = scheduler()
    assert cached(target, request("a", *SYSTEM, 1, 2)) == 0
    assert cached(target, request("branched", *SYSTEM, 3, 4)) == 12
    assert cached(target, request("again", *SYSTEM, 1, 2)) == 12
    assert cached(target, request("half", *SYSTEM[:6], 1, 2)) == 4
    assert cached(target, request("other", 1, *SYSTEM)) == 0


def test_one_token_at_least_is_computed():
    target = scheduler()
    run(target, request("a", *SYSTEM))
    assert cached(target, request("again", *SYSTEM)) == 8


def test_a_chat_goes_on_after_its_last_answer():
    target = scheduler()
    run(target, request("a", *SYSTEM, tokens=9))
    # The last token of an answer is never computed: of 9, the cache has 8.
    assert cached(target, request("next turn", *SYSTEM, *[7] * 9, 1)) == 20


def test_salts_and_namespaces_keep_apart():
    target = scheduler()
    assert cached(target, request("a", *SYSTEM, 1, salt=b"a")) == 0
    assert cached(target, request("b", *SYSTEM, 1, salt=b"b")) == 0
    assert cached(target, request("a", *SYSTEM, 1, salt=b"a")) == 12


def test_longrope_shares_within_a_regime_only():
    target = scheduler(recompute_lengths=(14,))
    run(target, request("short", *SYSTEM, 1))
    assert cached(target, request("long", *SYSTEM, *range(8))) == 0
    assert cached(target, request("also long", *SYSTEM, *range(6))) == 16
    assert cached(target, request("short", *SYSTEM, 1)) == 12


def test_a_sequence_that_outgrows_a_regime_leaves_pages_of_both():
    target = scheduler(recompute_lengths=(14,))
    run(target, request("grows", *SYSTEM, 1, tokens=6))
    assert cached(target, request("short", *SYSTEM, 1)) == 12
    assert cached(target, request("long", *SYSTEM, 1, 7, 7, 7, 7, 7)) == 16


def test_dynamic_ntk_shares_longer_prompts_only_at_equal_length():
    target = scheduler(scaled_past=16)
    run(target, request("short", *SYSTEM, tokens=12))
    assert cached(target, request("short too", *SYSTEM, 1, 2, 3)) == 12
    assert cached(target, request("long", *SYSTEM, *range(8))) == 0
    assert cached(target, request("longer", *SYSTEM, *range(9))) == 0
    assert cached(target, request("long again", *SYSTEM, *range(8))) == 16


def test_sequences_that_arrive_together_compute_their_prefix_once():
    target = scheduler(step_tokens=8)
    for number in range(4):
        target.add(request(f"{number}", *SYSTEM, number), 0)
    assert step(target) == [(0, 0, 8)]
    assert step(target) == [(0, 8, 5)]
    assert step(target) == [(1, 12, 1), (2, 12, 1), (3, 12, 1)]
    assert [start.cached_tokens for start in target.take_starts()] == [0, 12, 12, 12]


def test_others_pass_one_that_waits_for_a_prefix():
    target = scheduler(step_tokens=8)
    for one in (request("a", *SYSTEM, 1), request("waits", *SYSTEM, 2), request("passes", 1, 2)):
        target.add(one, 0)
    assert step(target) == [(0, 0, 8)]
    assert step(target) == [(0, 8, 5), (2, 0, 2)]


def test_nobody_waits_for_a_later_one():
    target = scheduler(step_tokens=8)
    target.add(request("batch job", *SYSTEM, 1, priority=9), 0)
    step(target)
    target.add(request("person", *SYSTEM, 2), 0)
    assert step(target) == [(0, 8, 5), (1, 8, 3)]


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_waiting_one_goes_on_when_the_one_that_computes_ends(how: str):
    target = scheduler(step_tokens=8)
    target.add(request("a", *SYSTEM, 1), 0)
    target.add(request("waits", *SYSTEM, 2), 0)
    batch = target.schedule(0.0)
    if how == "fail":
        target.fail(batch.slices[0], "no")
        target.commit(Batch(batch.step, ()), [])
        assert step(target) == [(1, 0, 8)]
    else:
        target.commit(batch, [None])
        target.cancel("a")
        assert step(target) == [(1, 8, 5)]


def test_pages_of_tokens_without_finite_logits_are_not_shared():
    target = scheduler(step_tokens=8)
    target.add(request("bad", *SYSTEM, 1), 0)
    step(target)
    step(target, None)
    target.take_starts()
    assert target.statistics().cache.pages_cached == 0
    assert cached(target, request("again", *SYSTEM, 1)) == 0


def test_tails_are_evicted_before_beginnings_and_the_oldest_chain_first():
    target = scheduler(pages=8, max_sequences=1)
    run(target, request("old", *SYSTEM, 1))
    run(target, request("new", *range(13)))
    # Six pages are cached, two free, and three will be taken.
    run(target, request("third", *range(50, 59)))
    assert cached(target, request("new", *range(13))) == 12
    assert cached(target, request("old", *SYSTEM, 1)) in (4, 8)
    statistics = target.statistics().cache
    assert statistics.evictions > 0
    assert statistics.pages_used == 0


def test_a_window_hits_where_all_that_it_sees_is_cached():
    sliding = LayerCache(Keeps.SLIDING, 6, 1, 4, 4)
    target = scheduler(layout=build_layout((FULL, sliding), 2, page_tokens=4))
    run(target, request("a", *range(30)))
    target.add(request("again", *range(20), 99), 0)
    batch = target.schedule(0.0)
    (part,) = batch.slices
    assert part.start == 20
    # Position 20 sees from 15 on: page 3.
    assert [(span.first, len(span.ids)) for span in part.spans] == [(0, 6), (3, 3)]


def test_what_running_ones_share_counts_once_at_admission():
    # Five pages each, three of them the same.
    target = scheduler(pages=9, step_tokens=32)
    target.add(request("a", *SYSTEM, *range(4), tokens=4), 0)
    target.add(request("b", *SYSTEM, *range(10, 14), tokens=4), 0)
    step(target)
    step(target)
    assert target.statistics().running == 2
    statistics = target.statistics().cache
    assert (statistics.pages_shared, statistics.pages_used) == (3, 6)


def test_statistics_count_lookups_and_hits():
    target = scheduler()
    run(target, request("a", *SYSTEM, 1, 2))
    run(target, request("b", *SYSTEM, 3))
    statistics = target.statistics().cache
    assert (statistics.lookup_tokens, statistics.hit_tokens) == (27, 12)
    assert statistics.pages_cached + statistics.pages_free == statistics.pages_total
