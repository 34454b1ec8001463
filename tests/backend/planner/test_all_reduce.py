"""Adding up over links: what was measured, what lies between, and that a better link is never slower."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.hardware.all_reduce_table import AllReduceFacts, all_reduce_table
from backend.planner.all_reduce import Kind, all_reduce_seconds

# Two all-reduces in each of 80 layers.
CALLS = 160


def test_the_table_is_whole_and_in_order() -> None:
    rows = all_reduce_table()
    assert len({(row.link, row.library, row.ranks) for row in rows}) == len(rows) == 30
    for row in rows:
        assert len(row.bytes) == len(row.us) > 8
        assert list(row.bytes) == sorted(row.bytes)
        assert row.source


@pytest.mark.parametrize("row", all_reduce_table(), ids=lambda row: f"{row.link}-{row.library}-{row.ranks}")
def test_predictions_are_what_was_measured_or_a_worse_links(row: AllReduceFacts) -> None:
    for count, microseconds in zip(row.bytes, row.us, strict=True):
        near = row.link != "pcie4-x16-l40s"
        found = all_reduce_seconds(row.kind, row.bandwidth, near, row.ranks, count, row.library == "own") * 1e6
        assert found <= microseconds * 1.0001
        if row.library == "nccl" and row.kind == "pcie":
            assert found == pytest.approx(microseconds, rel=0.3)


def test_a_70bs_decode_adds_up_in_a_millisecond_on_h100_and_four_on_l40s() -> None:
    for ranks in (4, 8):
        assert CALLS * all_reduce_seconds("nvlink", 450, True, ranks, 16 << 10, True) == pytest.approx(0.8e-3, rel=0.1)
    assert CALLS * all_reduce_seconds("pcie", 31.5, False, 8, 16 << 10, True) == pytest.approx(4e-3, rel=0.15)


def test_a_prompt_of_8192_adds_up_in_a_tenth_of_a_second_on_h100_and_six_seconds_on_l40s() -> None:
    assert CALLS * all_reduce_seconds("nvlink", 450, True, 4, 128 << 20) == pytest.approx(0.092, rel=0.1)
    assert CALLS * all_reduce_seconds("pcie", 31.5, False, 4, 128 << 20) == pytest.approx(6.2, rel=0.05)


def test_an_engines_own_kernel_is_for_small_messages() -> None:
    small, large = (
        [all_reduce_seconds("nvlink", 450, True, 8, count, own) for own in (False, True)] for count in (4096, 1 << 28)
    )
    assert small[1] < 0.5 * small[0]
    assert large[1] == pytest.approx(large[0], rel=0.1)


def test_through_main_memory_it_takes_longer() -> None:
    for ranks in (2, 3, 4, 8):
        for count in (0, 1 << 14, 1 << 27):
            host, direct = (all_reduce_seconds(kind, 31.5, False, ranks, count) for kind in ("host", "pcie"))
            assert host > direct
    pair = (1 << 27) / all_reduce_seconds("host", 31.5, True, 2, 1 << 27) / 1e9
    assert pair == pytest.approx(11.3, rel=0.05)  # RTX 3090 without writes to each other


def test_one_rank_adds_nothing_up() -> None:
    assert all_reduce_seconds("host", 31.5, False, 1, 1 << 20) == 0


kinds: list[Kind] = ["host", "pcie", "nvlink"]


@given(
    st.sampled_from(kinds), st.floats(4, 2000), st.booleans(), st.integers(2, 16), st.integers(0, 1 << 30),
    st.booleans(), st.floats(1, 4),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_more_bytes_ranks_or_bandwidth_never_help_the_wrong_way(
    kind: Kind, bandwidth: float, near: bool, ranks: int, count: int, own: bool, factor: float
) -> None:
    seconds = all_reduce_seconds(kind, bandwidth, near, ranks, count, own)
    assert seconds > 0
    assert all_reduce_seconds(kind, bandwidth * factor, near, ranks, count, own) <= seconds * (1 + 1e-9)
    assert all_reduce_seconds(kind, bandwidth, near, ranks, int(count * factor), own) >= seconds * (1 - 1e-9)
    assert all_reduce_seconds(kind, bandwidth, True, ranks, count, own) <= seconds * (1 + 1e-9)
    for better in kinds[kinds.index(kind) :]:
        assert all_reduce_seconds(better, bandwidth, near, ranks, count, own) <= seconds * (1 + 1e-9)
