"""open_group: ranks that meet keep what works for all of them, say why, and name who did not come."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.errors import SettingError
from backend.executor import DeviceLostError
from backend.parallel import open_group as opening
from backend.parallel.chosen_group import ChosenGroup, choose, explain, limits
from backend.parallel.gloo_group import GlooGroup
from backend.parallel.lone_group import LoneGroup
from backend.parallel.open_group import open_group
from backend.parallel.rendezvous import Rendezvous
from tests.fakes.ranks import hear, running_ranks, say

CPU = torch.device("cpu")


def test_the_fastest_serves_each_size_and_near_equals_the_first() -> None:
    first = {10: 1.0, 100: 2.0, 1000: 9.0}
    later = {10: 0.9, 100: 1.5, 1000: 3.0}
    assert choose([first, later]) == (0, 1, 1)
    # What a group cannot serve, another does, however slow.
    assert choose([{10: 1.0}, {10: 9.0, 100: 99.0}]) == (0, 1)


def test_borders_lie_between_measured_sizes() -> None:
    assert limits((100, 400, 1600), (0, 0, 1)) == ((800.0, 0), (float("inf"), 1))
    assert limits((100, 400), (1, 1)) == ((float("inf"), 1),)


def test_the_choice_is_explained_in_a_line() -> None:
    seconds = [{1024: 5e-6}, {1024: 2e-5, 1 << 20: 1e-4}]
    table = limits((1024, 1 << 20), choose(seconds))
    assert explain(["one-shot", "nccl"], table, seconds) == (
        "all-reduce over one-shot up to 32 KiB, nccl beyond "
        "(measured, in µs: one-shot 1 KiB 5; nccl 1 KiB 20, 1 MiB 100)"
    )


class Recorder:
    """A group that notes what it is given."""

    rank, size = 0, 2

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.given: list[int] = []
        self.closed = False

    def all_reduce(self, x: Tensor) -> None:
        self.given.append(x.nbytes)

    def gather(self, x: Tensor) -> Tensor | None:
        self.given.append(-x.nbytes)
        return None

    def serves(self, x: Tensor) -> bool:
        return self.most is None or x.numel() % self.most == 0

    def close(self) -> None:
        self.closed = True


def test_a_message_goes_to_the_group_of_its_size_unless_that_cannot_serve_it() -> None:
    small, general = Recorder(most=4), Recorder()
    closed: list[str] = []
    group = ChosenGroup([small, general], ((100.0, 0), (float("inf"), 1)), "", lambda: closed.append("meeting"))
    for count in (4, 100, 5, 101):
        group.all_reduce(torch.zeros(count, dtype=torch.uint8))
    group.gather(torch.zeros(4, dtype=torch.uint8))
    assert (small.given, general.given) == ([4, 100], [5, 101, -4])
    group.close()
    assert (small.closed, general.closed, closed) == (True, True, ["meeting"])


def test_one_rank_meets_nobody(tmp_path: Path) -> None:
    group = open_group(0, 1, CPU, tmp_path / "nowhere", generation="1")
    x = torch.ones(3)
    group.all_reduce(x)
    gathered = group.gather(x)
    assert gathered is not None
    assert isinstance(group, LoneGroup)
    assert gathered.tolist() == [[1.0, 1.0, 1.0]]
    group.close()


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(DeviceLostError, match="rank 1 of 3 waited 0 s at the start for ranks 0, 2"):
        open_group(1, 3, CPU, tmp_path, generation="1", limit=0.2)


def test_ranks_meet_only_where_others_cannot(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(SettingError, match="open to other users"):
        open_group(0, 2, CPU, tmp_path, generation="1")


def test_unknown_means_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cpu cannot add up over nccl\.\nKnown there: shared, gloo\."):
        open_group(0, 2, CPU, tmp_path, generation="1", only=("nccl",))


class Inexact:
    """A group that adds `wrong` to every sum: enough to be wrong, or only other bits on each rank."""

    def __init__(self, meeting: Rendezvous, limit: float, purpose: str, wrong: float) -> None:
        self._inner = GlooGroup(meeting, limit, purpose)
        self._wrong = wrong
        self.rank, self.size = self._inner.rank, self._inner.size

    def all_reduce(self, x: Tensor) -> None:
        self._inner.all_reduce(x)
        x.mul_(1 + self._wrong * self.rank)

    def gather(self, x: Tensor) -> Tensor | None:
        return self._inner.gather(x)

    def close(self) -> None:
        self._inner.close()


def refuse_on_one(meeting: Rendezvous, device: torch.device, limit: float) -> GlooGroup:
    if meeting.peers.rank == 1:
        raise RuntimeError("peer access is not supported\nand more")
    return GlooGroup(meeting, limit, "refused")


def open_in_turn(rank: int, size: int, folder: Path) -> list[Any]:
    """What the real means give, and then a list in which all but the last fail, each in its way."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    group = open_group(rank, size, CPU, folder, generation="real")
    assert isinstance(group, ChosenGroup)
    only = "several" if group.only is None else group.only.__class__.__name__
    x = torch.full((576,), rank + 1.0)
    group.all_reduce(x)
    group.close()
    opening.MEANS = {
        "cpu": {
            "refused": refuse_on_one,
            "wrong": lambda meeting, device, limit: Inexact(meeting, limit, "wrong", 0.5),
            "unequal": lambda meeting, device, limit: Inexact(meeting, limit, "unequal", 2e-7),
            "hung": lambda meeting, device, limit: GlooGroup(meeting, limit, "hung"),
            "gloo": lambda meeting, device, limit: GlooGroup(meeting, limit),
        }
    }
    # What an earlier start leaves that its watchdog ended.
    (folder / "trying-hung").touch()
    say(folder, f"marked-{rank}")
    hear(folder, f"marked-{1 - rank}")
    group = open_group(rank, size, CPU, folder, generation="fallen", limit=3.0)
    y = torch.full((3,), rank + 1.0)
    group.all_reduce(y)
    group.close()
    return [only, set(x.tolist()) == {3.0}, y.tolist(), getattr(group, "explanation", "")]


def test_what_fails_on_any_rank_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    with running_ranks(tmp_path / "ranks", 2, open_in_turn) as ranks:
        results = ranks.results()
        logs = [ranks.log(rank) for rank in range(2)]
    for only, summed, fallen, explanation in results:
        assert (summed, fallen) == (True, [3.0, 3.0, 3.0])
        # Which of them was fastest is the machine's to say; not that ranks took different ones.
        assert only == results[0][0]
        assert "all-reduce over gloo at every size" in explanation
    assert "collectives do without refused: peer access is not supported\n" in logs[1]
    assert "rank 0: collectives do without refused: " in logs[0]
    assert "collectives do without wrong: its sum of 1 elements is wrong" in logs[1]
    for log in logs:
        assert "collectives do without unequal: ranks end with different bits" in log
        assert "collectives do without hung: an earlier start hung in its probe" in log
