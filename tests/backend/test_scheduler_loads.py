"""Shared prefixes and tiers over longer loads; and the checks of World checked: each kind of damage is noticed."""

from __future__ import annotations

import pytest

from backend.admission import Admission
from backend.request import Request, Sampling
from kvcache import cache_manager, hit_finder
from kvcache.cache_manager import CacheManager
from kvcache.host_index import HostIndex
from kvcache.layout import Keeps, LayerCache, build_layout
from kvcache.lower_tiers import LowerTiers
from kvcache.page_key import root_of
from kvcache.page_pool import PagePool
from tests.fakes.world import MAX_CONTEXT, Limits, World, some_tokens


def shared_world() -> World:
    """Sequences that share a trunk, under salts, of a model with windows and dynamic NTK."""
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4), LayerCache(Keeps.SLIDING, 6, 1, 4, 4)), 2, 2)
    world = World(layout, Limits(MAX_CONTEXT, 60, 4, 24, (20,), 18))
    trunk = some_tokens(MAX_CONTEXT, 0)
    for number in range(16):
        salt = b"one" if number % 3 else b"other"
        prompt = (*trunk[: 6 + number * 8 % 20], *range(number // 10 * 3))
        sampling = Sampling(max_tokens=8)
        world.submit(Request(id="", prompt=prompt, sampling=sampling, cache_salt=salt))
        world.step()
    return world


def test_shared_prefixes_are_served_from_the_cache():
    world = shared_world()
    world.finish()
    statistics = world.scheduler.statistics().cache
    assert statistics.hit_tokens > 30
    assert sum(told.start.cached_tokens for told in world.told.values() if told.start) > 30


@pytest.mark.parametrize("mutation", ["no salt", "no class", "no windows", "no last token", "not kept"])
def test_the_checks_notice_what_must_not_be_shared(mutation: str, monkeypatch: pytest.MonkeyPatch):
    longest = hit_finder.longest_prefix
    if mutation == "no salt":
        monkeypatch.setattr(cache_manager, "root_of", lambda space, salt, kind: root_of(space, kind))
    elif mutation == "no class":
        monkeypatch.setattr(cache_manager, "root_of", lambda space, salt, kind: root_of(space, salt))
    elif mutation == "no windows":
        monkeypatch.setattr(
            hit_finder,
            "longest_prefix",
            lambda groups, keys, limit, held: longest(groups[:1], keys[:1], limit, held),
        )
    elif mutation == "no last token":
        monkeypatch.setattr(
            hit_finder, "longest_prefix", lambda groups, keys, limit, held: longest(groups, keys, limit + 1, held)
        )
    else:
        monkeypatch.setattr(PagePool, "keep", lambda pool, page: None)
    with pytest.raises((AssertionError, ValueError, KeyError, IndexError)):
        shared_world().finish()


def tiered_world(failures: float = 0.0, host_pages: int = 50) -> World:
    """More than the pool holds, over host and disk: chats that go on, branch and are asked again."""
    layout = build_layout((LayerCache(Keeps.FULL, None, 1, 4, 4), LayerCache(Keeps.SLIDING, 6, 1, 4, 4)), 2, 2)
    world = World(layout, Limits(MAX_CONTEXT, 6, 4, 24, (), None, host_pages, 100, 3, failures))
    for number in range(40):
        trunk = some_tokens(MAX_CONTEXT, number * 5 % 4)
        prompt = (*trunk[: 8 + number * 7 % 24], *range(number // 8))
        world.submit(Request(id="", prompt=prompt, sampling=Sampling(max_tokens=6)))
        for _ in range(number % 4 * 4):
            world.step()
            world.scheduler.check_integrity()
        if not world.engine.has_work:
            world.engine.idle()
    return world


@pytest.mark.parametrize("failures", [0.0, 0.2])
def test_pages_come_back_from_host_and_disk(failures: float):
    world = tiered_world(failures)
    world.finish()
    statistics = world.scheduler.statistics().cache
    assert statistics.host_hit_tokens > 0
    assert statistics.disk_hit_tokens > 0
    assert statistics.stored_pages > 0
    assert (statistics.failed_transfers > 0) is (failures > 0)


@pytest.mark.parametrize("mutation", ["runs before pages arrive", "lets go of slots", "trusts failed fetches"])
def test_the_checks_notice_what_breaks_the_promises(mutation: str, monkeypatch: pytest.MonkeyPatch):
    if mutation == "runs before pages arrive":
        monkeypatch.setattr(Admission, "take_in_fetched", _run_what_fetches)
    elif mutation == "lets go of slots":
        monkeypatch.setattr(HostIndex, "pin", lambda host, page: None)
        monkeypatch.setattr(HostIndex, "unpin", lambda host, key, slot, newest: None)
        monkeypatch.setattr(HostIndex, "check_integrity", lambda host: None)
        monkeypatch.setattr(LowerTiers, "check_integrity", lambda lower: None)
    else:
        arrive = CacheManager._arrive
        monkeypatch.setattr(CacheManager, "_arrive", lambda cache, transfer, succeeded: arrive(cache, transfer, True))
    with pytest.raises((AssertionError, ValueError, KeyError)):
        _try_host_sizes()


def _try_host_sizes() -> None:
    for host_pages in (6, 12, 20, 30, 50):
        tiered_world(0.2, host_pages).finish()


def _run_what_fetches(admission: Admission) -> None:
    for sequence in list(admission.fetching):
        admission.fetching.remove(sequence)
        admission._run(sequence)
