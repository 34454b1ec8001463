"""MachineOptions: what a hardware string says beside the GPUs: links, network, main memory, processor. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from backend.errors import SettingError
from backend.hardware.built_machine import Wiring, main_memory, usual_cpu
from backend.hardware.cluster import Network
from backend.hardware.cpu import DECIDING, Cpu
from backend.hardware.memory import Memory
from backend.hardware.network_table import find_network, network_table
from backend.sizes import parse_size

_PCIE = re.compile(r"pcie(?:[ -]?(?:gen)?(\d)(?:\.0)?)?(?:[ -]?x(1|2|4|8|16))?")
_LANES = re.compile(r"x(1|2|4|8|16)")
_CORES = re.compile(r"(\d+)[ -]?cores?")
_SIZE = r"(\d[\d.]* ?[kmgt]i?b)"
_MEMORY = re.compile(rf"{_SIZE}(?: (?:of )?(?:main )?(?:ram|memory))?|(?:main )?(?:ram|memory)[ =:]{_SIZE}")
_WORDS = ("nvlink", "nvlink-pairs", "pcie", "pcie4 x8", "p2p", "no-p2p", "256GiB ram", "16 cores")
_PAIRS = frozenset({"nvlink-pairs", "nvlink pairs", "nvlinkpairs", "pairs", "paired"})
_ALIASES = {"amx": "amx_bf16", "avx512": "avx512f"}


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What was said; None where nothing was.

    Attributes:
        link, generation, width, peer: as in Wiring.
        network: between the machines.
        memory: bytes of main memory of each.
        cores, features: of each one's processor.
    """

    link: str | None = None
    generation: int | None = None
    width: int | None = None
    peer: bool | None = None
    network: Network | None = None
    memory: int | None = None
    cores: int | None = None
    features: tuple[str, ...] = ()

    @property
    def wiring(self) -> Wiring:
        return Wiring(self.link or "usual", self.generation, self.width, self.peer)

    @property
    def main_memory(self) -> Memory | None:
        return None if self.memory is None else main_memory(self.memory)

    def cpu(self, cores: int) -> Cpu | None:
        """`cores` where features were named and no number."""
        if self.cores is None and not self.features:
            return None
        return usual_cpu(self.cores or cores, self.features or ("avx2",))


def with_option(options: MachineOptions, text: str) -> MachineOptions:
    """The options with one more.

    Raises:
        SettingError: it is none.
    """
    plain = " ".join(text.lower().split())
    for reader in _READERS:
        if (changed := reader(options, plain)) is not None:
            return changed
    near = get_close_matches(plain, [*_WORDS, *(facts.aliases[0] for facts in network_table())], n=3, cutoff=0.5)
    raise SettingError(
        f"{text.strip()!r} says nothing about hardware.",
        f"The nearest are {', '.join(near)}." if near else f"Options are such as {', '.join(_WORDS)}, ib-hdr.",
        "GPUs of several kinds are joined by +; see `shardwise fit --help`.",
    )


def link_option(options: MachineOptions, text: str) -> MachineOptions | None:
    """The options with one more, if it is about links between GPUs."""
    plain = text.lower()
    if plain in ("nvlink", "nvswitch", "bridge"):
        return replace(options, link="nvlink")
    if plain in _PAIRS:
        return replace(options, link="pairs")
    if plain in ("p2p", "no-p2p", "no p2p"):
        return replace(options, peer=plain == "p2p")
    if match := _PCIE.fullmatch(plain):
        generation, width = (int(part) if part else None for part in match.groups())
        # "pcie x8, nvlink" is a bridge between cards in narrow slots.
        return replace(
            options,
            link=options.link or "pcie",
            generation=generation or options.generation,
            width=width or options.width,
        )
    if match := _LANES.fullmatch(plain):
        return replace(options, width=int(match[1]))
    return None


def _network_option(options: MachineOptions, text: str) -> MachineOptions | None:
    network = find_network(text)
    return None if network is None else replace(options, network=network)


def _memory_option(options: MachineOptions, text: str) -> MachineOptions | None:
    match = _MEMORY.fullmatch(text)
    return None if match is None else replace(options, memory=parse_size(match[1] or match[2]))


def _processor_option(options: MachineOptions, text: str) -> MachineOptions | None:
    if (match := _CORES.fullmatch(text)) and int(match[1]):
        return replace(options, cores=int(match[1]))
    feature = _ALIASES.get(text, text)
    if feature in DECIDING:
        return replace(options, features=(*options.features, feature))
    return None


_READERS: tuple[Callable[[MachineOptions, str], MachineOptions | None], ...] = (
    link_option,
    _network_option,
    _memory_option,
    _processor_option,
)
