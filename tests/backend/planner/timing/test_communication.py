"""What ranks and stages send."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.hardware.cluster import Network
from backend.planner.timing.communication import all_reduce_seconds, send_seconds, token_bytes
from tests.fakes.models import LLAMA_70B, QWEN3_30B_A3B
from tests.fakes.works import H100, NVLINK, work_of

NETWORK = Network("ib-ndr400", "InfiniBand NDR", 50.0, 44.0, 10e-6)


def test_a_token_of_a_70b_sends_two_all_reduces_a_layer() -> None:
    """16 KiB each, 160 of them: 2.5 MiB, and of a ring 2 (n - 1) / n as much."""
    work = work_of(LLAMA_70B, (H100,) * 2, NVLINK)
    assert token_bytes(work) == 160 * 16 * 1024
    assert token_bytes(work_of(LLAMA_70B, (H100,) * 8, NVLINK)) == int(1.75 * 160 * 16 * 1024)
    assert token_bytes(work_of(LLAMA_70B, (H100,))) == 0


def test_a_boundary_hands_on_one_hidden_state() -> None:
    one = work_of(LLAMA_70B, (H100,))
    assert token_bytes(replace(one, stages=one.stages * 3, between=NETWORK)) == 16 * 1024


def test_layers_with_states_add_up_too() -> None:
    work = work_of(QWEN3_30B_A3B, (H100,) * 2, NVLINK)
    rank = work.stages[0].ranks[0]
    stage = replace(work.stages[0], ranks=(replace(rank, state_layers=48), *work.stages[0].ranks[1:]))
    assert token_bytes(replace(work, stages=(stage,))) == 2 * token_bytes(work)


def test_a_network_takes_its_latency_and_what_it_reaches() -> None:
    assert send_seconds(NETWORK, 44_000_000) == pytest.approx(10e-6 + 1e-3)
    assert all_reduce_seconds(NETWORK, 2, 44_000_000) == pytest.approx(10e-6 + 1e-3)
    assert all_reduce_seconds(NETWORK, 4, 44_000_000) == pytest.approx(30e-6 + 1.5e-3)


def test_without_a_way_nothing_is_waited_for() -> None:
    assert send_seconds(None, 1 << 20) == all_reduce_seconds(None, 8, 1 << 20) == all_reduce_seconds(NVLINK, 1, 9) == 0
