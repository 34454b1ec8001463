"""What the probe says of a real GPU: only one can show whether the driver answers as the fake one does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from backend.hardware.gpu_table import gpu_facts
from backend.hardware.host_probe import measure
from backend.hardware.machine import read_machine
from backend.planner.links import host_bandwidth

pytestmark = pytest.mark.gpu


def test_the_driver_and_cuda_agree() -> None:
    machine = read_machine()
    assert machine.gpu_problem == ""
    for number, gpu in enumerate(machine.gpus):
        facts = torch.cuda.get_device_properties(number)
        assert gpu.capability == (facts.major, facts.minor)
        # NVML counts what the driver keeps for itself, CUDA does not.
        assert facts.total_memory <= gpu.total < facts.total_memory + (2 << 30)
        assert gpu.mode != "prohibited"
        assert not gpu.mig


def test_this_process_is_found_among_the_holders() -> None:
    block = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda:0")
    gpu = read_machine().gpus[0]
    taken = gpu.total - gpu.free
    assert taken >= block.numel()
    ours = [holder for holder in gpu.holders if holder.pid == os.getpid()]
    # In a container the driver may know this process by another id, or name none.
    assert gpu.holders == () or ours or "KUBERNETES_SERVICE_HOST" in os.environ or Path("/.dockerenv").exists()


def test_copies_reach_most_of_the_slot(tmp_path: Path) -> None:
    machine = read_machine()
    rates = measure(machine, tmp_path)
    assert [copy.uuid for copy in rates.copies] == [gpu.uuid for gpu in machine.gpus]
    for gpu in machine.gpus:
        measured = rates.to_gpu(gpu.uuid)
        assert measured > 1.0
        if gpu_facts(gpu.name) is not None and gpu.pcie_generation:
            assert measured < 2 * host_bandwidth(gpu)
