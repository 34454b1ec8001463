"""What every Group promises, over all implementations that run without a GPU: ranks are real processes.

GPUs' own, NCCL and symmetric memory, are in tests/gpu/test_groups.py.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from backend.executor import DeviceLostError
from backend.parallel.gloo_group import GlooGroup
from backend.parallel.group import Group
from backend.parallel.host_group import HostGroup
from backend.parallel.rendezvous import Rendezvous, meet
from backend.parallel.shared_group import SharedGroup
from tests.fakes.ranks import hear, running_ranks, say

CPU = torch.device("cpu")
GROUPS: Mapping[str, Callable[[Rendezvous, float], Group]] = {
    "shared": SharedGroup,
    "gloo": GlooGroup,
    "host": lambda meeting, limit: HostGroup(SharedGroup(meeting, limit), "host", CPU),
    "host-gloo": lambda meeting, limit: HostGroup(GlooGroup(meeting, limit), "host-gloo", CPU),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# One element, odd counts around the blocks and slots of shared memory, and some MiB.
COUNTS = (1, 2, 577, 2047, 2049, 65_537, 131_073, 300_001)
# Of one addition, relative to the size of what is added.
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
WAITED = ("shared", "gloo")


def operand(count: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + count)
    return (torch.randn(count, generator=generator) * 3).to(dtype)


def bits_of(x: torch.Tensor) -> int:
    return zlib.crc32(x.view(torch.uint8).numpy().tobytes())


def listening() -> list[str]:
    """Addresses on which this process accepts connections."""
    sockets = psutil.Process().net_connections("inet")
    return sorted({socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN})


def sums(group: Group) -> list[list[Any]]:
    """[type, count, largest error over what rounding explains, bits] of each sum."""
    found: list[list[Any]] = []
    for dtype in DTYPES:
        for count in COUNTS:
            parts = torch.stack([operand(count, rank, dtype) for rank in range(group.size)])
            x = parts[group.rank].clone()
            group.all_reduce(x)
            room = group.size * ROUNDING[dtype] * parts.double().abs().sum(0)
            error = float(((x.double() - parts.double().sum(0)).abs() / room).max())
            found.append([str(dtype), count, error, bits_of(x)])
    return found


def gathers(group: Group) -> list[bool | None]:
    """Whether each gather brought rank 0 every rank's bits, in order; None where it brought nothing."""
    found: list[bool | None] = []
    for count in COUNTS[::2]:
        gathered = group.gather(operand(count, group.rank, torch.float32).view(1, -1))
        wanted = torch.stack([operand(count, rank, torch.float32).view(1, -1) for rank in range(group.size)])
        found.append(None if gathered is None else torch.equal(gathered, wanted))
    return found


def use(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """By implementation: its sums, gathers, where it listens while it is open, and what is left afterwards."""
    found: dict[str, Any] = {}
    for name, make in GROUPS.items():
        meeting = meet(rank, size, folder, name, 60.0)
        group = make(meeting, 60.0)
        assert (group.rank, group.size) == (rank, size)
        found[name] = [sums(group), gathers(group), listening()]
        group.close()
        del group
        meeting.close()
        found[name].append(listening())
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_group_keeps_its_promises(size: int, tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", size, use) as ranks:
        results = ranks.results(100.0)
        kinds = {path.suffix for path in ranks.folder.iterdir()}
    assert kinds == {".log", ".arguments", ".result"}, "a group left a file where its ranks met"
    assert list(results[0]) == list(GROUPS)
    for name in GROUPS:
        everywhere = [result[name] for result in results]
        for line in zip(*(found for found, *_ in everywhere), strict=True):
            assert max(error for _, _, error, _ in line) <= 1.0, (name, line)
            assert len({bits for *_, bits in line}) == 1, (name, line)
        for rank, (_, gathered, while_open, after) in enumerate(everywhere):
            assert gathered == [None if rank else True] * len(COUNTS[::2]), name
            assert while_open == (["127.0.0.1"] if "gloo" in name else []), name
            assert after == [], name


@pytest.mark.parametrize("make", [SharedGroup, GlooGroup])
def test_one_rank_is_a_group(make: Callable[[Rendezvous, float], Group], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    meeting = meet(0, 1, tmp_path, "alone", 10.0)
    group = make(meeting, 10.0)
    assert max(error for _, _, error, _ in sums(group)) == 0.0
    assert set(gathers(group)) == {True}
    group.close()
    meeting.close()
    assert list(tmp_path.iterdir()) == []


def sum_until_lost(rank: int, size: int, folder: Path, name: str, limit: float) -> str:
    """Rank 1 stands still after some sums; what the others are told."""
    meeting = meet(rank, size, folder, "test", 60.0)
    group = GROUPS[name](meeting, 60.0)
    x = torch.ones(576, dtype=torch.bfloat16)
    # Imports and compilation are not what the limit is for.
    group.all_reduce(x)
    group.close()
    meeting = meet(rank, size, folder, "short", 60.0)
    group = GROUPS[name](meeting, limit)
    for _ in range(3):
        group.all_reduce(x)
    say(folder, f"summed-{rank}")
    if rank == 1:
        hear(folder, "never")
    with pytest.raises(DeviceLostError) as caught:
        group.all_reduce(x)
    with pytest.raises(DeviceLostError):
        group.all_reduce(x)
    group.close()
    meeting.close()
    return str(caught.value)


@pytest.mark.parametrize("name", WAITED)
def test_a_killed_peer_is_named(name: str, tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 3, sum_until_lost, name=name, limit=60.0) as ranks:
        for rank in range(3):
            ranks.await_word(f"summed-{rank}")
        ranks.processes[1].kill()
        told = [ranks.result(0, 30.0), ranks.result(2, 30.0)]
    for rank, message in zip((0, 2), told, strict=True):
        assert f"rank {rank} of 3 lost another in all_reduce of 1152 bytes over {name} (cpu): " in message
        assert f"rank 1 (process {ranks.processes[1].pid}) has ended" in message


@pytest.mark.parametrize("name", WAITED)
def test_a_stopped_peer_is_named_after_the_limit(name: str, tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 2, sum_until_lost, name=name, limit=2.0) as ranks:
        for rank in range(2):
            ranks.await_word(f"summed-{rank}")
        ranks.processes[1].send_signal(signal.SIGSTOP)
        message = ranks.result(0, 30.0)
    assert "rank 0 of 2 waited 2 s in all_reduce of 1152 bytes over" in message
    assert "ranks that arrived: 0;" in message
    assert f"rank 1 (process {ranks.processes[1].pid}) is stopped" in message
    assert "--collective-timeout" in message


def differ(rank: int, size: int, folder: Path) -> str:
    meeting = meet(rank, size, folder, "test", 60.0)
    group = SharedGroup(meeting, 60.0)
    group.all_reduce(torch.ones(3))
    with pytest.raises(DeviceLostError) as caught:
        group.all_reduce(torch.ones(4 + rank))
    say(folder, f"told-{rank}")
    hear(folder, f"told-{1 - rank}")
    return str(caught.value)


def test_ranks_that_make_different_calls_are_told(tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 2, differ) as ranks:
        told = ranks.results()
    assert ["rank 1 made another call" in told[0], "rank 0 made another call" in told[1]] == [True, True]


def leave(rank: int, size: int, folder: Path) -> str:
    """Rank 1 leaves the group, and its process lives on."""
    meeting = meet(rank, size, folder, "test", 60.0)
    group = SharedGroup(meeting, 60.0)
    group.all_reduce(torch.ones(3))
    if rank == 1:
        group.close()
        hear(folder, "told")
        return ""
    with pytest.raises(DeviceLostError) as caught:
        group.all_reduce(torch.ones(3))
    say(folder, "told")
    return str(caught.value)


def test_a_rank_that_left_is_not_waited_for(tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 2, leave) as ranks:
        assert "rank 1 is gone" in ranks.results()[0]
