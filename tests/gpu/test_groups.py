"""Groups on CUDA devices: what tests/conformance/test_groups.py asks of the others, and what only a GPU can show.

NCCL and symmetric memory need a GPU for each rank; NCCL of one rank, and two ranks that share a GPU over main memory,
need one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend.parallel.nccl_group import NcclGroup
from backend.parallel.open_group import MEANS, open_group
from backend.parallel.probe import fault, fingerprint
from backend.parallel.rendezvous import meet
from tests.fakes.ranks import running_ranks

pytestmark = pytest.mark.gpu


def several() -> int:
    """Ranks for tests that give each a GPU of its own."""
    count = min(torch.cuda.device_count(), 4)
    if count < 2:
        pytest.skip("one CUDA device only")
    return count


def sum_over(rank: int, size: int, folder: Path, name: str, shared: bool) -> list[Any]:
    """[elements whose sum is wrong, bits of the sums, whether rank 0 gathered right] over one means."""
    device = torch.device("cuda", 0 if shared else rank)
    torch.cuda.set_device(device)
    meeting = meet(rank, size, folder, "test", 60.0)
    group = MEANS["cuda"][name](meeting, device, 60.0)
    wrong, bits = fault(group, device), fingerprint(group, device)
    right = True
    if name not in ("one-shot", "two-shot"):
        gathered = group.gather(torch.full((3, 5), rank, device=device))
        wanted = torch.arange(size)[:, None, None].expand(size, 3, 5)
        right = gathered is None if rank else gathered is not None and torch.equal(gathered.cpu(), wanted)
    group.close()
    meeting.close()
    return [wrong, bits, right]


def check(folder: Path, size: int, name: str, shared: bool) -> None:
    with running_ranks(folder / "ranks", size, sum_over, name=name, shared=shared) as ranks:
        results = ranks.results(120.0)
    assert [[wrong, right] for wrong, _, right in results] == [[None, True]] * size
    assert len({bits for _, bits, _ in results}) == 1


@pytest.mark.parametrize("name", ["host", "host-gloo"])
def test_ranks_that_share_a_gpu(name: str, tmp_path: Path) -> None:
    check(tmp_path, 2, name, shared=True)


@pytest.mark.parametrize("name", list(MEANS["cuda"]))
def test_ranks_with_a_gpu_each(name: str, tmp_path: Path) -> None:
    size = several()
    if name == "one-shot" and size not in (2, 4):
        size = 2
    check(tmp_path, size, name, shared=False)


def test_nccl_of_one_rank_is_captured_and_replayed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    device = torch.device("cuda", 0)
    meeting = meet(0, 1, tmp_path, "alone", 30.0)
    group = NcclGroup(meeting, device, 30.0)
    x = torch.ones(577, device=device, dtype=torch.bfloat16)
    group.all_reduce(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        x.add_(1)
        group.all_reduce(x)
    graph.replay()
    torch.cuda.synchronize()
    assert set(x.tolist()) == {2.0}
    group.close()
    meeting.close()


def open_and_sum(rank: int, size: int, folder: Path, shared: bool) -> list[Any]:
    device = torch.device("cuda", 0 if shared else rank)
    torch.cuda.set_device(device)
    group = open_group(rank, size, device, folder, generation="1", limit=60.0)
    x = torch.full((16, 576), rank + 1.0, device=device, dtype=torch.bfloat16)
    group.all_reduce(x)
    total = set(x.flatten().tolist())
    group.close()
    return [sorted(total), getattr(group, "explanation", "")]


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_measured_is_chosen_and_explained(shared: bool, tmp_path: Path) -> None:
    size = 2 if shared else several()
    with running_ranks(tmp_path / "ranks", size, open_and_sum, shared=shared) as ranks:
        results = ranks.results(120.0)
    print(results[0][1])
    for total, explanation in results:
        assert total == [size * (size + 1) / 2]
        assert explanation.startswith("all-reduce over ")
        assert not (shared and "nccl" in explanation), "NCCL has no two ranks on one GPU"
