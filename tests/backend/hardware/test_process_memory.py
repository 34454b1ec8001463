"""What a process is told of its own memory, against memory that it takes and gives back."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import psutil
import pytest
import torch

from backend.hardware.process_memory import forget_peak, read_process_memory, touched_bytes

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells it by files of Linux")


def area(size: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def test_what_is_written_is_resident_and_what_is_not_is_none() -> None:
    before = read_process_memory()
    memory = area(64 * MIB)
    address = memory.data_ptr()
    assert touched_bytes(address, memory.nbytes) == 0
    assert read_process_memory().resident - before.resident < 8 * MIB
    memory[16 * MIB : 48 * MIB].fill_(1)
    assert touched_bytes(address, memory.nbytes) == 32 * MIB
    assert touched_bytes(address, 16 * MIB) == 0
    # Parts of pages count as whole ones, but no more than was asked for.
    assert touched_bytes(address + 20 * MIB + 100, 5000) == 5000
    assert touched_bytes(address, 0) == 0
    after = read_process_memory()
    assert 24 * MIB < after.resident - before.resident < 40 * MIB
    assert after.anonymous is not None
    assert after.proportional is not None
    assert after.proportional <= after.resident


def test_the_peak_is_what_was_held_and_can_be_forgotten() -> None:
    memory = area(64 * MIB)
    memory.fill_(1)
    held = read_process_memory().resident
    del memory
    now = read_process_memory()
    assert now.resident < held - 48 * MIB
    assert now.peak >= held - MIB
    assert forget_peak()
    assert read_process_memory().peak < held - 48 * MIB


def test_another_process_can_be_asked_and_one_that_is_not_there_cannot() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert 0 < read_process_memory(other.pid).resident < 200 * MIB
        other.kill()
    assert not psutil.pid_exists(other.pid)
    with pytest.raises((OSError, psutil.Error)):
        read_process_memory(other.pid)
    assert read_process_memory(os.getpid()).resident > 0


def test_memory_that_is_not_mapped_is_not_counted() -> None:
    assert touched_bytes(mmap.PAGESIZE, mmap.PAGESIZE) is None
