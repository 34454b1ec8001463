"""What a worker decodes is the batch that the engine encoded, whatever happened to its sequences before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.batch import Batch, PageSpan, SampleTask, Slice
from backend.request import Request, Sampling
from backend.scheduler import Scheduler
from backend.workers.step_codec import PATIENCE, StepDecoder, StepEncoder
from backend.workers.worker_messages import Step, encoder, to_worker_decoder
from kvcache.cache_manager import CacheManager
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from kvcache.transfer import Place, Tier, Transfer
from tests.fakes.executor import PagedExecutor
from tests.fakes.tiers import FakeDisk, FakeTiers

FULL = LayerCache(Keeps.FULL, None, 1, 2, 2)
SLIDING = LayerCache(Keeps.SLIDING, 12, 1, 2, 2)


def plain(batch: Batch) -> tuple[object, ...]:
    """The batch's values, without the types of its lists."""
    return (batch.step, batch.transfers, [_plain(part) for part in batch.slices])


def _plain(part: Slice) -> tuple[object, ...]:
    task = part.sample
    return (
        part.sequence,
        part.start,
        list(part.tokens),
        part.prompt_length,
        part.length,
        [(span.first, list(span.ids)) for span in part.spans],
        task and (task.sampling, list(task.prompt), list(task.output)),
    )


class Wire:
    """An encoder and the decoder at its other end, with bytes between them."""

    def __init__(self, groups: int) -> None:
        self.encoder, self.decoder = StepEncoder(), StepDecoder(groups)
        self.bytes = 0

    def carry(self, batch: Batch) -> Batch:
        body = encoder.encode(self.encoder.encode(batch))
        self.bytes = len(body)
        message = to_worker_decoder.decode(body)
        assert isinstance(message, Step)
        return self.decoder.decode(message)

    def check(self, batch: Batch) -> None:
        assert plain(self.carry(batch)) == plain(batch)
        assert len(self.encoder) == len(self.decoder)


def decoding(sequence: int, prompt: list[int], output: list[int], pages: list[int], sampling: Sampling) -> Slice:
    tokens = [*prompt, *output]
    span = PageSpan(0, pages)
    task = SampleTask(sampling, prompt, output)
    return Slice(sequence, len(tokens) - 1, tokens[-1:], len(prompt), len(tokens), (span,), task)


def test_a_decoding_sequence_costs_few_bytes_a_step() -> None:
    wire, prompt, output, pages = Wire(1), list(range(4000)), [7], list(range(1000, 1251))
    sampling = Sampling(logit_bias={5: 1.0}, logprobs=2)
    wire.check(Batch(1, (decoding(0, prompt, output, pages, sampling),)))
    assert wire.bytes > 8000
    for step in range(2, 40):
        output.append(step)
        wire.check(Batch(step, (decoding(0, prompt, output, pages, sampling),)))
        assert wire.bytes < 40
    pages.append(9)
    wire.check(Batch(40, (decoding(0, prompt, output, pages, sampling),)))
    assert wire.bytes < 50


def test_who_sits_out_is_forgotten_on_both_sides_and_may_come_back() -> None:
    wire, sampling = Wire(1), Sampling()
    wire.check(Batch(0, tuple(decoding(number, [1, 2], [3], [number], sampling) for number in range(5))))
    for step in range(PATIENCE + 2):
        wire.check(Batch(step, (decoding(0, [1, 2], [3], [0], sampling),)))
    assert len(wire.encoder) == len(wire.decoder) == 1
    wire.check(Batch(99, (decoding(3, [1, 2], [3, 4, 5], [8], sampling),)))


def test_nothing_is_noted_of_a_batch_that_cannot_be_encoded() -> None:
    wire = Wire(1)
    good = decoding(0, [1, 2], [3], [0], Sampling())
    bad = Slice(1, 0, (1,), 2, 2, (PageSpan(0, [1]),), SampleTask(Sampling(), (1, 2), ()))
    with pytest.raises(ValueError, match="newest"):
        wire.carry(Batch(0, (good, bad)))
    wire.check(Batch(1, (good,)))


def test_a_message_out_of_order_is_refused() -> None:
    one, decoder = StepEncoder(), StepDecoder(1)
    one.encode(Batch(0, (decoding(0, [1, 2], [3], [0], Sampling()),)))
    later = one.encode(Batch(1, (decoding(0, [1, 2], [3, 4], [0], Sampling()),)))
    with pytest.raises(ValueError, match="never told"):
        decoder.decode(later)


@st.composite
def histories(draw: st.DrawFn) -> list[Batch]:
    """Batches of sequences that grow, start over, lose pages in front or behind, sit out, and come with transfers."""
    random = Random(draw(st.integers(0, 1 << 30)))
    prompts = {n: [random.randrange(9) for _ in range(random.randint(1, 30))] for n in range(draw(st.integers(1, 4)))}
    outputs: dict[int, list[int]] = {number: [] for number in prompts}
    pages: dict[int, list[list[int]]] = {number: [[], []] for number in prompts}
    firsts = {number: [0, 0] for number in prompts}
    computed = dict.fromkeys(prompts, 0)
    samplings = {number: Sampling(seed=number) for number in prompts}
    batches: list[Batch] = []
    for step in range(draw(st.integers(1, 40))):
        slices: list[Slice] = []
        for number, prompt in prompts.items():
            happens = random.random()
            if happens < 0.2:
                continue
            length = len(prompt) + len(outputs[number])
            if happens < 0.35:
                computed[number] = random.randrange(length)  # preempted, and back after some hit
                pages[number], firsts[number] = [[random.randrange(50) for _ in range(3)] for _ in "ab"], [0, 0]
            for group in (0, 1):
                _turn(random, pages[number][group], firsts[number], group)
            start = computed[number]
            count = random.randint(1, length - start)
            spans = tuple(PageSpan(firsts[number][group], list(pages[number][group])) for group in (0, 1))
            tokens = [*prompt, *outputs[number]][start : start + count]
            ends = start + count == length
            task = SampleTask(samplings[number], prompt, list(outputs[number])) if ends else None
            slices.append(Slice(number, start, tokens, len(prompt), length, spans, task))
            computed[number] = start + count
            if ends:
                outputs[number].append(random.randrange(9))
        transfers = tuple(
            Transfer(step * 10 + index, bytes(32), Place(Tier.DEVICE, index), Place(Tier.HOST, 2), 1, b"o")
            for index in range(random.choice((0, 0, 2)))
        )
        batches.append(Batch(step, tuple(slices), transfers))
    return batches


def _turn(random: Random, ids: list[int], firsts: list[int], group: int) -> None:
    """Something that may happen to a page table."""
    match random.randrange(6):
        case 0:
            ids += [random.randrange(50) for _ in range(random.randint(1, 3))]
        case 1:
            dropped = random.randint(0, len(ids))
            del ids[:dropped]
            firsts[group] += dropped
        case 2:
            del ids[random.randint(0, len(ids)) :]
        case 3 if ids:
            ids[random.randrange(len(ids))] = 51
        case _:
            pass


@settings(max_examples=200, deadline=None)
@given(histories())
def test_what_is_decoded_is_what_was_encoded(batches: list[Batch]) -> None:
    wire = Wire(2)
    for batch in batches:
        wire.check(batch)
        if len(batch.slices) > 1:  # as the engine does after a failure
            middle = len(batch.slices) // 2
            wire.check(Batch(batch.step, batch.slices[:middle]))
            wire.check(Batch(batch.step, batch.slices[middle:]))


def scheduled(layout: CacheLayout, random: Random) -> Iterator[Batch]:
    """Batches of the real scheduler over a pool that is too small, with lower tiers, preemption and fetches."""
    disk = FakeDisk(40)
    executor = PagedExecutor(layout, 24, tiers=FakeTiers(8, disk, random.randrange(1000), failures=0.1))
    cache = CacheManager(layout, 24, host_pages=8, disk=disk)
    scheduler = Scheduler(cache, max_context=64, max_sequences=5, step_tokens=16)
    for number in range(12):
        prompt = tuple(random.randrange(3) for _ in range(random.randint(1, 40)))
        scheduler.add(Request(id=str(number), prompt=prompt, sampling=Sampling(max_tokens=random.randint(1, 20))), 0.0)
    for _ in range(2000):
        if not scheduler.has_work:
            return
        scheduler.transfers_done(executor.transfers_done(0.1))
        batch = scheduler.schedule(0.0)
        yield batch
        scheduler.commit(batch, executor.execute(batch))
    raise AssertionError("the requests do not end")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_schedulers_batches_arrive_as_they_were_made(seed: int) -> None:
    layout = build_layout((FULL, SLIDING), 4, page_tokens=4)
    wire = Wire(len(layout.groups))
    for batch in scheduled(layout, Random(seed)):
        wire.check(batch)


def test_a_window_that_slides_costs_few_bytes() -> None:
    wire, prompt, output, pages = Wire(1), [1] * 100, [7], list(range(1000, 1250))
    sampling = Sampling()
    for step in range(20):
        part = decoding(0, prompt, output, pages, sampling)
        wire.check(Batch(step, (replace(part, spans=(PageSpan(step, pages),)),)))
        assert step == 0 or wire.bytes < 60
        output.append(step)
        del pages[0]
        pages.append(step)
