"""open_group: what a rank's process calls to get its Group: the ranks meet, try every means, and keep the fastest.

All ranks go through the same steps, so that none waits for one that has given up: each says over Gloo whether a means
works for it, and only what works for all is kept. Rank 0's times decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from backend.errors import SettingError
from backend.parallel.chosen_group import ChosenGroup, choose, explain, limits
from backend.parallel.gloo_group import GlooGroup
from backend.parallel.group import Group
from backend.parallel.host_group import HostGroup
from backend.parallel.lone_group import LoneGroup
from backend.parallel.nccl_group import NcclGroup
from backend.parallel.probe import fault, fingerprint, measure
from backend.parallel.rendezvous import Rendezvous, meet
from backend.parallel.shared_group import SharedGroup
from backend.parallel.symmetric_group import SymmetricGroup

Maker = Callable[[Rendezvous, torch.device, float], Group]
# In order of preference; the last that works has to serve every tensor.
MEANS: Mapping[str, Mapping[str, Maker]] = {
    "cpu": {
        "shared": lambda meeting, device, limit: SharedGroup(meeting, limit),
        "gloo": lambda meeting, device, limit: GlooGroup(meeting, limit),
    },
    "cuda": {
        "one-shot": lambda meeting, device, limit: SymmetricGroup(meeting, "one-shot", device, limit),
        "two-shot": lambda meeting, device, limit: SymmetricGroup(meeting, "two-shot", device, limit),
        "nccl": NcclGroup,
        "host": lambda meeting, device, limit: HostGroup(SharedGroup(meeting, limit), "host", device),
        "host-gloo": lambda meeting, device, limit: HostGroup(GlooGroup(meeting, limit), "host-gloo", device),
    },
}
# These need a GPU for each rank.
APART = frozenset({"one-shot", "two-shot", "nccl"})
SUMS_ONLY = frozenset({"one-shot", "two-shot"})
# What libraries raise where a means is not there. A lost rank is a RuntimeError too, and shows in the next agreement.
UNUSABLE = (RuntimeError, OSError, ImportError, AttributeError, TypeError, ValueError)
Result = TypeVar("Result")
log = logging.getLogger("shardwise.collectives")


def open_group(
    rank: int,
    size: int,
    device: torch.device,
    folder: Path,
    *,
    generation: str,
    limit: float = 30.0,
    only: Sequence[str] = (),
) -> LoneGroup | ChosenGroup:
    """Makes one rank's end of the group; every rank's process calls it, with the same arguments but its own device.

    Args:
        folder: where the ranks meet; exists, 0700, on this machine. What hung a process here is not tried here again.
        generation: a word for this start of the group, never used before in this folder.
        limit: seconds that a rank waits for the others, here and in every call.
        only: the means to try, of `MEANS`; empty for all.

    Raises:
        SettingError: `only` names nothing that works here, or the folder is open to others.
        DeviceLostError: a rank did not come, or was lost meanwhile.
    """
    makers = _chosen_makers(device, only)
    if size == 1:
        return LoneGroup()
    meeting = meet(rank, size, folder, generation, limit)
    # Whoever gives a means up waits here for those who have to find out by their own limit.
    control = GlooGroup(meeting, 2 * limit, "control")
    opening = _Opening(meeting, control, device, limit, folder)
    try:
        found = [found for name, maker in makers.items() if (found := opening.attempt(name, maker)) is not None]
        return opening.choose(found)
    except BaseException:
        meeting.close()
        raise
    finally:
        control.close()


def _chosen_makers(device: torch.device, only: Sequence[str]) -> Mapping[str, Maker]:
    makers = MEANS[device.type]
    unknown = [name for name in only if name not in makers]
    if unknown:
        raise SettingError(
            f"Ranks on {device.type} cannot add up over {', '.join(unknown)}.",
            hint=f"Known there: {', '.join(makers)}.",
        )
    return {name: maker for name, maker in makers.items() if not only or name in only}


@dataclass(frozen=True)
class _Found:
    """A means that works on every rank, with what rank 0 measured."""

    name: str
    group: Group
    seconds: Mapping[int, float]


class _Opening:
    """The steps that all ranks take together."""

    def __init__(
        self, meeting: Rendezvous, control: GlooGroup, device: torch.device, limit: float, folder: Path
    ) -> None:
        self._meeting = meeting
        self._control = control
        self._device = device
        self._limit = limit
        self._folder = folder
        self._apart = _own_devices(meeting, device)

    def attempt(self, name: str, maker: Maker) -> _Found | None:
        """Opens and probes one means; None, with a sentence in the log, where it does not work on every rank."""
        if name in APART and not self._apart:
            self._without(name, "ranks share a GPU")
            return None
        marker = self._folder / f"trying-{name}"
        if self._tell(float(marker.exists())):
            self._without(name, "an earlier start hung in its probe")
            return None
        if self._meeting.peers.rank == 0:
            marker.touch()
        found = self._probe(name, maker)
        if self._meeting.peers.rank == 0:
            marker.unlink(missing_ok=True)
        return found

    def choose(self, found: Sequence[_Found]) -> ChosenGroup:
        """Keeps what is fastest at some size by rank 0's times; none but groups for every tensor serve the largest."""
        if all(one.name in SUMS_ONLY for one in found):
            raise SettingError(
                f"Ranks on {self._device.type} find no means here that adds up every tensor.",
                "The log has a sentence on each that was tried.",
                "Leave the choice of collectives to auto.",
            )
        seconds = [one.seconds for one in found]
        sizes = sorted({size for times in seconds for size in times})
        best = [int(self._tell(index)) for index in choose(seconds)]
        kept = sorted(set(best))
        for index, one in enumerate(found):
            if index not in kept:
                one.group.close()
        explanation = explain([one.name for one in found], limits(sizes, best), seconds)
        log.info("%s", explanation)
        table = limits(sizes, [kept.index(index) for index in best])
        return ChosenGroup([found[index].group for index in kept], table, explanation, self._meeting.close)

    def _probe(self, name: str, maker: Maker) -> _Found | None:
        group, reason = _tried(lambda: maker(self._meeting, self._device, self._limit))
        agreed = self._agree(reason == "")
        if group is None or not agreed:
            self._give_up(name, group, reason)
            return None
        wrong, reason = _tried(lambda: fault(group, self._device))
        if wrong is not None:
            reason = f"its sum of {wrong} elements is wrong"
        if not self._agree(reason == ""):
            self._give_up(name, group, reason)
            return None
        bits, reason = _tried(lambda: fingerprint(group, self._device))
        equal = self._is_equal(bits or 0)
        if not self._agree(bits is not None and equal):
            self._give_up(name, group, reason or "ranks end with different bits")
            return None
        return _Found(name, group, measure(group, self._device))

    def _give_up(self, name: str, group: Group | None, reason: str) -> None:
        if group is not None:
            group.close()
        self._without(name, reason or "it does not work for another rank")

    def _without(self, name: str, reason: str) -> None:
        log.warning("rank %d: collectives do without %s: %s", self._meeting.peers.rank, name, reason)

    def _agree(self, fine: bool) -> bool:
        """Whether it is fine for every rank."""
        return self._sum([float(fine)]) == [float(self._meeting.peers.size)]

    def _is_equal(self, number: int) -> bool:
        """Whether a number of 32 bits is the ranks' mean; where each finds so of its own, all are equal."""
        parts = [float(number >> 16), float(number & 0xFFFF)]
        return self._sum(parts) == [part * self._meeting.peers.size for part in parts]

    def _tell(self, value: float) -> float:
        """Rank 0's value, on every rank."""
        return self._sum([value if self._meeting.peers.rank == 0 else 0.0])[0]

    def _sum(self, values: Sequence[float]) -> list[float]:
        x = torch.tensor(values, dtype=torch.float64)
        self._control.all_reduce(x)
        return x.tolist()


def _tried(run: Callable[[], Result]) -> tuple[Result | None, str]:
    """What it returns, or why it does not."""
    try:
        return run(), ""
    except UNUSABLE as error:
        return None, str(error).strip().partition("\n")[0] or type(error).__name__


def _own_devices(meeting: Rendezvous, device: torch.device) -> bool:
    """Whether no two ranks compute on the same GPU."""
    if device.type != "cuda":
        return False
    store, peers = meeting.prefixed("devices"), meeting.peers
    store.set(str(peers.rank), str(torch.cuda.get_device_properties(device).uuid))
    return len({store.get(str(rank)) for rank in range(peers.size)}) == peers.size
