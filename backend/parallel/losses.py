"""Losses: what is said, and raised, when a collective cannot end. Who waits how is the groups' own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backend.executor import DeviceLostError
from backend.parallel.rendezvous import Rendezvous

# What may help where ranks stand still although their processes run, by what carried the collective.
HINTS = {
    "nccl": "NCCL_P2P_DISABLE=1, or --collectives host, shows whether peer-to-peer copies are to blame",
    "one-shot": "--collectives nccl does without torch's symmetric memory",
    "two-shot": "--collectives nccl does without torch's symmetric memory",
}
# A process that is killed closes its sockets before it counts as ended.
DYING_SECONDS = 0.5
PATIENCE = "a longer --collective-timeout gives them more time"


@dataclass(frozen=True)
class Place:
    """Where a rank's collectives run, for messages: by what means, on which device, with which limit in seconds."""

    means: str
    device: torch.device
    limit: float


def describe(meeting: Rendezvous, place: Place, what: str, waited: float) -> str:
    """One line: who waited for what, who arrived there, what their processes do, and what to try.

    Takes a moment, in which other ranks may say that they wait, too.
    """
    peers = meeting.peers
    arrived = ", ".join(map(str, meeting.waiting(f"{place.means}/{what}")))
    hint = HINTS.get(place.means)
    return (
        f"rank {peers.rank} of {peers.size} waited {waited:.0f} s in {what} over {place.means} ({place.device}); ranks "
        f"that arrived: {arrived}; {peers.verdict()}. {PATIENCE.capitalize()}{f'; {hint}' if hint else ''}."
    )


def lost(meeting: Rendezvous, place: Place, what: str, reason: str) -> DeviceLostError:
    """A collective ended early because of another rank: which one, as far as its process shows, and in what."""
    peers = meeting.peers
    return DeviceLostError(
        f"rank {peers.rank} of {peers.size} lost another in {what} over {place.means} ({place.device}): "
        f"{peers.verdict(DYING_SECONDS)} ({reason})"
    )


def late(meeting: Rendezvous, place: Place, what: str, waited: float) -> DeviceLostError:
    return DeviceLostError(describe(meeting, place, what, waited))
