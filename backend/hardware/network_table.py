"""NetworkFacts: what is known of networks between machines; the tables lie in `assets/hardware`."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import resources

import msgspec
from msgspec import Struct

from backend.errors import SettingError
from backend.hardware.cluster import Network
from backend.hardware.machine import Machine


class NetworkFacts(Struct, frozen=True):
    """One kind of network between machines with a port for each GPU, or one that their GPUs take turns at.

    Attributes:
        id: of the table of links, which has its speed as built.
        name: for people; `aliases` are what else a person may write.
        reached: GB/s of messages of some MiB, in one direction.
        latency: seconds of a small collective of two ranks.
        reached_source, latency_source: where these were measured, or from what they were estimated.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    reached: float
    reached_source: str
    latency: float
    latency_source: str

    @property
    def network(self) -> Network:
        source = f"reached: {self.reached_source}; latency: {self.latency_source}"
        return Network(self.id, self.name, _built(self.id), self.reached, self.latency, source)


class _LinkRow(Struct, frozen=True):
    id: str
    theory_gbs_per_dir: float | None = None


@cache
def network_table() -> tuple[NetworkFacts, ...]:
    """Every kind, fastest first within a technique."""
    return tuple(msgspec.json.decode(line, type=NetworkFacts) for line in _lines("networks.jsonl"))


def find_network(text: str) -> Network | None:
    """The network of this id, name or alias, whatever its case and hyphens; None where there is none."""
    wanted = _plain(text)
    for facts in network_table():
        if wanted in {_plain(name) for name in (facts.id, facts.name, *facts.aliases)}:
            return facts.network
    return None


def network_named(text: str) -> Network:
    """The same.

    Raises:
        SettingError: there is none.
    """
    found = find_network(text)
    if found is None:
        names = [facts.aliases[0] for facts in network_table()]
        near = get_close_matches(text.lower(), [*names, *(facts.id for facts in network_table())], n=3, cutoff=0.4)
        raise SettingError(
            f"No network is known as {text.strip()!r}.",
            f"The nearest names are {', '.join(near)}." if near else "",
            f"Known are {', '.join(names)}.",
        )
    return found


def usual_network(machine: Machine) -> Network:
    """What such machines are mostly joined by: the InfiniBand of their time, or what is in an office's wall."""
    name = next((gpu.name for gpu in machine.gpus), "")
    if "GB10" in name:
        return network_named("roce-200g")
    on_board = any(link.nvlink and link.way == "nvswitch" for link in machine.links)
    if on_board:
        return network_named("ib-hdr" if machine.gpus[0].capability < (9, 0) else "ib-ndr")
    return network_named("10gbe")


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


@cache
def _speeds() -> dict[str, float]:
    rows = (msgspec.json.decode(line, type=_LinkRow) for line in _lines("links.jsonl"))
    return {row.id: row.theory_gbs_per_dir for row in rows if row.theory_gbs_per_dir is not None}


def _built(identity: str) -> float:
    return _speeds()[identity]


def _lines(file: str) -> list[bytes]:
    text = (resources.files("assets") / "hardware" / file).read_bytes()
    return [line for line in text.splitlines() if line]
