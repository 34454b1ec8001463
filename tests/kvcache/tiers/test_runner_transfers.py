"""The runner begins a batch's transfers before it writes pages: what was offloaded answers as if it had never left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.request import Sampling
from backend.runner import Runner, written_pages
from backend.surgery.load import load_model
from backend.surgery.pack import pack_model
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from kvcache.tiers.disk import DiskTier
from kvcache.tiers.host import HostTier
from kvcache.tiers.record import PageShape
from kvcache.transfer import Place, Tier, Transfer
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.tiny_models import make_checkpoint

CPU = torch.device("cpu")
PAGES, PAGE_TOKENS = 12, 16
PROMPT = tuple(range(1, 1 + 2 * PAGE_TOKENS))
OTHER = tuple(range(100, 70, -1))


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    files = make_checkpoint("llama", tmp_path)
    model = load_model(files, dtype=torch.float32, device=CPU, on_progress=lambda done, total: None)
    team = Team(1)
    layout = build_layout(model.facts.layers, 4, PAGE_TOKENS)
    made = Runner(pack_model(model, WEIGHT_FORMATS["model"], team), layout, PAGES, team)
    assert len(made.kernel_orders) == len(model.facts.layers)
    shapes = (PageShape.of(layout, layout.groups[0]),)
    disk = DiskTier.open(
        tmp_path / "pages", 1 << 30, secret=b"s" * 32, namespace=b"n" * 32, model="tiny", shapes=shapes
    )
    made.attach_tiers(HostTier(4, layout.page_bytes, CPU), disk)
    yield made
    made.close()


def prefill(pages: list[int], tokens: tuple[int, ...]) -> Slice:
    return Slice(0, 0, tokens, len(tokens), len(tokens), (PageSpan(0, pages),), None)


def decode(pages: list[int]) -> Slice:
    length = len(PROMPT)
    task = SampleTask(Sampling(logprobs=5), PROMPT, ())
    return Slice(1, length, (7,), length, length + 1, (PageSpan(0, pages),), task)


def test_pages_that_left_and_came_back_answer_as_before(runner: Runner) -> None:
    runner.execute(Batch(0, (prefill([0, 1], PROMPT),)))
    (expected,) = runner.execute(Batch(1, (decode([0, 1, 2]),)))
    host, disk = Place(Tier.HOST, 3), Place(Tier.DISK)
    out = (
        Transfer(0, b"0" * 32, Place(Tier.DEVICE, 0), host),
        Transfer(1, b"1" * 32, Place(Tier.DEVICE, 1), disk),
    )
    # The same batch gives both pages to another sequence.
    runner.execute(Batch(2, (prefill([0, 1], OTHER),), out))
    finish(runner, 2)
    back = (
        Transfer(2, b"0" * 32, host, Place(Tier.DEVICE, 7)),
        Transfer(3, b"1" * 32, disk, Place(Tier.DEVICE, 8)),
    )
    assert runner.execute(Batch(3, (), back)) == []
    finish(runner, 2)
    assert runner.execute(Batch(4, (decode([7, 8, 9]),))) == [expected]
    assert runner.execute(Batch(5, (decode([0, 1, 9]),))) != [expected]


def finish(runner: Runner, number: int) -> None:
    while number:
        done = runner.transfers_done(20.0)
        assert done
        assert all(one.succeeded for one in done)
        number -= len(done)


def test_written_pages_are_those_from_each_slices_start_on() -> None:
    sliding = LayerCache(Keeps.SLIDING, 32, 1, 16, 16)
    layout: CacheLayout = build_layout((LayerCache(Keeps.FULL, None, 1, 16, 16), sliding), 4, 16)
    spans = (PageSpan(0, [10, 11, 12, 13]), PageSpan(1, [21, 22, 23]))
    part = Slice(0, 40, (1,) * 12, 52, 52, spans, None)
    assert sorted(written_pages(Batch(0, (part,)), layout)) == [12, 13, 22, 23]
    assert list(written_pages(Batch(0, ()), layout)) == []
