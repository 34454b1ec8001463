"""SharedGroup beyond what every group promises: all-reduces as jobs of a Program, and what it leaves to Gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backend.executor import DeviceLostError
from backend.parallel.rendezvous import meet
from backend.parallel.shared_group import SharedGroup
from quant.cpu.program import Program
from quant.cpu.team import Team
from tests.fakes.ranks import hear, running_ranks, say


def run_program(rank: int, size: int, folder: Path) -> list[list[float]]:
    """Two all-reduces in one Program, several times; then rank 1 is killed before the last."""
    group = SharedGroup(meet(rank, size, folder, "test", 60.0), 60.0)
    tensors = [torch.zeros(577), torch.zeros(3, dtype=torch.bfloat16)]
    jobs = [group.job(x) for x in tensors]
    program = Program(Team(1), [function for function, _ in jobs], 4)
    for line, (_, words) in enumerate(jobs):
        program.words[line] = words
    program.items[:] = 1
    found = []
    for step in range(3):
        for x in tensors:
            x.fill_(rank + step)
        program.run()
        group.check()
        found.append([x.unique().item() for x in tensors])
    say(folder, f"ran-{rank}")
    if rank == 1:
        hear(folder, "never")
    program.run()
    with pytest.raises(DeviceLostError, match="lost another in all_reduce over shared"):
        group.check()
    group.close()
    return found


def test_all_reduces_run_inside_a_program(tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 2, run_program) as ranks:
        for rank in range(2):
            ranks.await_word(f"ran-{rank}")
        ranks.processes[1].kill()
        assert ranks.result(0) == [[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]]


def test_what_it_cannot_sum_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    meeting = meet(0, 1, tmp_path, "alone", 10.0)
    group = SharedGroup(meeting, 10.0)
    with pytest.raises(TypeError, match=r"torch\.int64 is not summed over shared"):
        group.all_reduce(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="contiguous"):
        group.all_reduce(torch.ones(4, 4).T)
    group.close()
    meeting.close()


def test_a_nan_on_one_rank_is_one_in_the_sum(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    meeting = meet(0, 1, tmp_path, "alone", 10.0)
    group = SharedGroup(meeting, 10.0)
    for dtype in (torch.bfloat16, torch.float32):
        # A NaN with all bits set would become -0 where rounding carried over.
        x = torch.full((33,), -1, dtype=torch.int32).view(dtype)
        x[0], x[1] = float("inf"), 3.0
        group.all_reduce(x)
        assert (x[0].item(), x[1].item(), x[2:].isnan().all().item()) == (float("inf"), 3.0, True)
    group.close()
    meeting.close()
