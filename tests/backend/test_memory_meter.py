"""What the meter makes of memory that a test takes as a rank would: by terms, and adding up."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from backend import memory_meter
from backend.memory_meter import Held, MemoryMeter
from quant.cpu.arena import huge_memory

MIB = 1 << 20
CPU = torch.device("cpu")


def written(size: int) -> torch.Tensor:
    return huge_memory(size).fill_(1)


def terms(meter: MemoryMeter, held: Held, rank: int = 0) -> dict[str, int]:
    return {term.name: term.bytes for term in meter.measure(rank, held).terms}


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells it by files of Linux")
def test_weights_pages_and_steps_are_told_apart_on_a_processor() -> None:
    weights, meter = written(64 * MIB), MemoryMeter(CPU)
    passing = written(96 * MIB)  # while loading, of no interest later
    del passing
    held = Held(weights.nbytes, huge_memory(128 * MIB), host=huge_memory(32 * MIB))
    meter.begin()
    step = written(48 * MIB)
    del step
    meter.settle(held)
    first = meter.measure(3, held)
    found = {term.name: term.bytes for term in first.terms}
    assert list(found) == ["weights", "kv", "activations", "libraries", "host cache"]
    assert (first.rank, first.device) == (3, "cpu")
    assert (found["weights"], found["kv"], found["host cache"]) == (64 * MIB, 128 * MIB, 32 * MIB)
    assert abs(found["activations"] - 48 * MIB) < 8 * MIB
    # Nothing was written in any page: all of them, up to the huge pages at the borders.
    assert first.untouched == 160 * MIB
    assert abs(first.resident - (first.total - first.untouched - found["activations"])) < 8 * MIB
    held.pages[: 100 * MIB].fill_(1)
    step = written(80 * MIB)
    del step
    later = meter.measure(3, held)
    after = {term.name: term.bytes for term in later.terms}
    assert 58 * MIB < later.untouched <= 60 * MIB
    assert after["libraries"] == found["libraries"]
    assert abs(after["activations"] - 80 * MIB) < 8 * MIB
    assert abs(later.resident - first.resident - 100 * MIB) < 8 * MIB


def test_the_peak_of_steps_does_not_fall() -> None:
    meter, held = MemoryMeter(CPU), Held(0, huge_memory(2 * MIB))
    meter.begin()
    step = written(64 * MIB)
    del step
    meter.settle(held)
    before = terms(meter, held)["activations"]
    meter._gauge.begin()
    assert terms(meter, held)["activations"] >= before


def test_where_a_peak_cannot_be_forgotten_that_of_loading_is_no_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_meter, "forget_peak", lambda: False)
    passing = written(256 * MIB)
    del passing
    meter, held = MemoryMeter(CPU), Held(0, huge_memory(2 * MIB))
    meter.begin()
    meter.settle(held)
    assert terms(meter, held)["activations"] < 16 * MIB


@pytest.mark.parametrize("told", [True, False])
def test_a_gpu_s_memory_is_what_the_driver_counts_and_torch_had_in_use(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    card: dict[str, Any] = {"used": 20_000 * MIB, "now": 16_400 * MIB, "peak": 16_900 * MIB}
    monkeypatch.setattr(memory_meter, "_own_gpu_memory", lambda device: card["used"] if told else None)
    total = 80_000 * MIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total - card["used"], total))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: card["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: card["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    meter = MemoryMeter(torch.device("cuda", 1))
    pages = torch.empty(2_000 * MIB, dtype=torch.uint8, device="meta")
    held = Held(14_000 * MIB, pages, communication=300 * MIB, streaming=100 * MIB)
    meter.begin()
    meter.settle(held)
    measured = meter.measure(1, held)
    found = {term.name: term.bytes // MIB for term in measured.terms}
    assert found == {
        "weights": 14_000,
        "kv": 2_000,
        "activations": 500,
        "libraries": 3_100,
        "communication": 300,
        "streaming": 100,
    }
    assert measured.total == measured.resident == 20_000 * MIB
    assert (measured.device, measured.untouched, measured.proportional) == ("cuda:1", 0, None)
    # A larger step than the warm-up's makes torch take more from the driver.
    card.update(used=20_400 * MIB, peak=17_300 * MIB)
    assert terms(meter, held) == {**{name: size * MIB for name, size in found.items()}, "activations": 900 * MIB}
