"""The processor kernel's plan of a step: everything that a token sees is computed once, and what is split is merged."""

from __future__ import annotations

from collections import Counter

import numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.attention.kernel import AttentionShape, GroupStep
from kvcache.attention.processor_sharing import LEAST_SHARED, SharedPrefix, shared_prefixes
from kvcache.attention.processor_work import ITEM_ROWS, Work, plan_work

PAGE = 16


def shape_of(heads: int, kv_heads: int, window: int | None = None, chunked: bool = False) -> AttentionShape:
    return AttentionShape(heads, kv_heads, 64, 64, PAGE, window, torch.float32, torch.device("cpu"), chunked=chunked)


def step_of(chunks: list[tuple[int, int]], shared: int = 0, shape: AttentionShape | None = None) -> GroupStep:
    """A step over (positions before, new tokens); the first `shared` pages are the same for all sequences."""
    columns = -(-max(past + new for past, new in chunks) // PAGE)
    tables = torch.arange(1, 1 + len(chunks) * columns).view(len(chunks), columns).int()
    tables[:, :shared] = tables[0, :shared].clone()
    counts = [new for _, new in chunks]
    starts = torch.tensor([past for past, _ in chunks], dtype=torch.int32)
    firsts = [0 if shape is None else shape.oldest_seen(past) // PAGE for past, _ in chunks]
    return GroupStep(
        query_starts=torch.tensor([0, *counts]).cumsum(0).int(),
        starts=starts,
        tables=tables,
        first_pages=torch.tensor(firsts, dtype=torch.int32),
        slots=torch.zeros(sum(counts), dtype=torch.int64),
        max_query=max(counts),
        max_length=max(past + new for past, new in chunks),
    )


def covered(work: Work, shape: AttentionShape) -> Counter[tuple[int, int, int]]:
    """How often each (token, head of the group, position seen) is computed."""
    seen: Counter[tuple[int, int, int]] = Counter()
    for _, _, begin, count, low, high, head, heads, _ in work.lines.tolist():
        for token in work.members[begin : begin + count].tolist():
            own = int(work.positions[token])
            for position in range(max(low, shape.oldest_seen(own)), min(high, own + 1)):
                seen.update((token, one, position) for one in range(head, head + heads))
    return seen


def check(step: GroupStep, shape: AttentionShape, threads: int) -> Work:
    work = plan_work(step, shape, threads)
    group = shape.heads // shape.kv_heads
    expected = {
        (token, head, position)
        for token, own in enumerate(work.positions.tolist())
        for head in range(group)
        for position in range(shape.oldest_seen(own), own + 1)
    }
    found = covered(work, shape)
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert (work.lines[:, 3] * work.lines[:, 7] <= ITEM_ROWS).all()
    parts: dict[int, list[int]] = {}
    for _, _, begin, count, _, _, head, _, partial in work.lines.tolist():
        for index in range(count if partial >= 0 and head == 0 else 0):
            parts.setdefault(int(work.members[begin + index]), []).append(partial + index)
    assert work.merged.tolist() == sorted(parts)
    for index, token in enumerate(work.merged.tolist()):
        assert sorted(work.parts[work.edges[index] : work.edges[index + 1]].tolist()) == sorted(parts[token])
    numbers = sorted(number for one in parts.values() for number in one)
    assert numbers == list(range(work.partials))
    return work


@settings(deadline=None, max_examples=25)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 20)), min_size=1, max_size=5),
    groups=st.sampled_from([(9, 3), (4, 4), (40, 1)]),
    window=st.sampled_from([(None, False), (50, False), (64, True)]),
    threads=st.integers(1, 4),
    shared=st.integers(0, 22),
)
def test_all_that_a_token_sees_is_computed_once(
    chunks: list[tuple[int, int]],
    groups: tuple[int, int],
    window: tuple[int | None, bool],
    threads: int,
    shared: int,
) -> None:
    shape = shape_of(*groups, *window)
    known = shared * PAGE if window[0] is None else 0
    moved = [(past + known, new) for past, new in chunks]
    check(step_of(moved, known // PAGE, shape), shape, threads)


def test_one_long_sequence_is_split_evenly_over_the_threads() -> None:
    work = check(step_of([(4000, 1)]), shape_of(9, 3), 2)
    lengths = work.lines[:, 5] - work.lines[:, 4]
    assert len(work.lines) * 3 % 2 == 0
    assert lengths.max() - lengths.min() < 128
    assert len(plan_work(step_of([(4000, 1)]), shape_of(9, 3), 1).lines) == 1


def test_sequences_enough_for_all_threads_are_not_split() -> None:
    work = check(step_of([(500, 1)] * 16), shape_of(9, 3), 2)
    assert len(work.lines) == 16
    assert work.partials == 0


def test_a_shared_prefix_is_read_once_for_as_many_rows_as_an_item_holds() -> None:
    pages = LEAST_SHARED // PAGE
    work = check(step_of([(LEAST_SHARED + 40, 1)] * 16, pages), shape_of(9, 3), 1)
    prefix = work.lines[work.lines[:, 4] == 0]
    assert prefix[:, 3].tolist() == [8, 8]
    assert prefix[:, 5].tolist() == [LEAST_SHARED] * 2
    assert len(work.lines) == 2 + 16
    below = check(step_of([(LEAST_SHARED + 40, 1)] * 16, pages - 1), shape_of(9, 3), 1)
    assert len(below.lines) == 16


def test_a_long_prompt_reads_its_prefix_by_itself() -> None:
    work = check(step_of([(320, 1), (320, 1), (320, 60)], 20), shape_of(9, 3), 1)
    assert (work.lines[work.lines[:, 4] == 0][:, 3]).tolist() == [2, *[8] * 7, 4]


def test_pages_that_a_step_still_writes_are_not_shared() -> None:
    """Equal ids past a sequence's start would be a mistake of the caller, and padding looks like page 0."""
    tables = numpy.array([[5, 6, 7, 0], [5, 6, 7, 0]], numpy.int32)
    rows = numpy.arange(2)
    assert shared_prefixes(tables, numpy.array([2, 4]), rows, 1) == [SharedPrefix((0, 1), 2)]
    assert shared_prefixes(tables, numpy.array([0, 4]), rows, 1) == []


def test_branches_are_grouped_where_most_is_saved() -> None:
    trunk, left, right = [1, 2], [3, 4, 5, 6], [7, 8, 9, 10]
    tables = numpy.array([trunk + left] * 2 + [trunk + right] * 2 + [[30, 31, 32, 33, 34, 35]], numpy.int32)
    whole = numpy.full(5, 6)
    found = shared_prefixes(tables, whole, numpy.arange(5), 1)
    assert sorted(found, key=lambda one: one.rows) == [SharedPrefix((0, 1), 6), SharedPrefix((2, 3), 6)]
    # Shallow branches: the trunk of all four saves more.
    shallow = numpy.array([[1, 2, 3, row] for row in (4, 4, 5, 5)], numpy.int32)
    (group,) = shared_prefixes(shallow, numpy.full(4, 4), numpy.arange(4), 1)
    assert group == SharedPrefix((0, 1, 2, 3), 3)
