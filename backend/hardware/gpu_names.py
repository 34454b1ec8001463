"""Finds the kind of GPU that a person means by a name, and shortens the names that drivers give. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import NoReturn

from backend.errors import SettingError
from backend.hardware.gpu_table import GpuFacts, gpu_table

_MAKERS = frozenset(
    {"nvidia", "amd", "geforce", "tesla", "quadro", "instinct", "radeon", "rtx", "rx", "gtx", "gpu"}
    | {"generation", "edition", "server", "workstation"}
)
# Words that name a family, which people leave out where nothing else has the number.
_OPTIONAL = frozenset({"ada", "blackwell", "pro"})
_SXM = re.compile(r"sxm\d?|hgx|dgx|hbm\de?")
_SIZE = re.compile(r"(\d+)(?:gb|gib)")
# What is sold as 80 GB is reported as 79.15 GiB, and 24 GB as 22.05 where ECC takes its part: the most and the least
# of that ratio in the table of GPUs, with a little room.
_LEAST, _MOST = 0.98, 1.12
_ALIASES = MappingProxyType({"dgx spark": "gb10", "spark": "gb10", "7900xtx": "7900 xtx"})
_GLUED = (
    re.compile(r"(rtx|gtx)(\w+)"),
    re.compile(r"(\d{4})(ti|super|d)(\w*)"),
    re.compile(r"(\w+?)(sxm\d?|pcie|nvl)"),
)


@dataclass(frozen=True, slots=True)
class FoundGpu:
    """A kind, and whether another one of that name was possible (`others`, by their short names)."""

    facts: GpuFacts
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Name:
    """A name in parts: what tells kinds apart, sizes in GB, and "sxm", "pcie" or nothing."""

    core: frozenset[str]
    sizes: frozenset[int]
    form: str


def short_name(name: str) -> str:
    """As people call it: "RTX 3090" for "NVIDIA GeForce RTX 3090"."""
    for word in ("NVIDIA ", "AMD ", "GeForce ", "Tesla ", "Instinct ", "Radeon ", " Generation", " Server Edition"):
        name = name.replace(word, "")
    # What NVIDIA tells apart by the kind of memory is known by the board: "H100 80GB SXM".
    return name.replace("80GB HBM3", "80GB SXM")


def is_sxm(facts: GpuFacts) -> bool:
    """Whether NVLink (or xGMI) is on its board, joining all GPUs of a machine."""
    return bool(facts.nvlink_gbs_bidir_per_gpu) and not takes_bridge(facts)


def takes_bridge(facts: GpuFacts) -> bool:
    """Whether NVLink is a bridge between two cards, to be bought."""
    return "bridge" in str(facts.nvlink_gen)


def find_gpu(text: str, pcie: bool = False) -> FoundGpu:
    """The kind that `text` names: "H100", "h100-80gb", "3090 Ti", "A100 SXM". `pcie`: a card, where both exist.

    Raises:
        SettingError: no kind has that name, or none with that memory; the message has the nearest names.
    """
    asked = _parts(text)
    named = [facts for facts in gpu_table() if _has_core(facts, asked)]
    least = min((len(_parts(facts.name).core) for facts in named), default=0)
    named = [facts for facts in named if len(_parts(facts.name).core) == least]
    sized = [facts for facts in named if _has_size(facts, asked.sizes)]
    if named and not sized:
        known = ", ".join(f"{short_name(facts.name)} ({facts.mem_total_gib_reported:.0f} GiB)" for facts in named)
        raise SettingError(
            f"No {text.strip()!r} is known.",
            f"Known of that name: {known}.",
            "Leave the size out, or describe the machine in a YAML file (see `shardwise fit --help`).",
        )
    form = asked.form or ("pcie" if pcie else "")
    found = [facts for facts in sized if _form(facts) == form] if form else sized
    # "sxm" of a kind without it is an error; "pcie" is no more than the way that it is plugged in.
    found = found or ([] if form == "sxm" else sized)
    if not found:
        _unknown(text)
    return FoundGpu(found[0], tuple(short_name(other.name) for other in found[1:]))


def _has_core(facts: GpuFacts, asked: _Name) -> bool:
    core = _parts(facts.name).core
    return bool(asked.core) and asked.core <= core and core - asked.core <= _OPTIONAL


def _has_size(facts: GpuFacts, sizes: frozenset[int]) -> bool:
    reported = facts.mem_total_gib_reported
    own = _parts(facts.name).sizes
    return all(size in own or _LEAST * reported <= size <= _MOST * reported for size in sizes)


def _form(facts: GpuFacts) -> str:
    return _parts(facts.name).form or ("sxm" if is_sxm(facts) else "")


@lru_cache(maxsize=1024)
def _parts(text: str) -> _Name:
    words = _words(text)
    sizes = {int(match[1]) for word in words if (match := _SIZE.fullmatch(word))}
    form = "pcie" if "pcie" in words else "sxm" if any(_SXM.fullmatch(word) for word in words) else ""
    core = [word for word in words if word not in _MAKERS and word != "pcie" and not _SIZE.fullmatch(word)]
    return _Name(frozenset(word for word in core if not _SXM.fullmatch(word)), frozenset(sizes), form)


def _words(text: str) -> list[str]:
    """Lower-case words, with what people glue together taken apart ("rtx3090ti")."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    for pattern in _GLUED:
        words = [part for word in words for part in _apart(pattern, word)]
    text = f" {' '.join(word for word in words if word)} "
    for alias, name in _ALIASES.items():
        text = text.replace(f" {alias} ", f" {name} ")
    return text.split()


def _apart(pattern: re.Pattern[str], word: str) -> tuple[str, ...]:
    match = pattern.fullmatch(word)
    return match.groups() if match else (word,)


def _unknown(text: str) -> NoReturn:
    names = {" ".join(sorted(_words(facts.name))): short_name(facts.name) for facts in gpu_table()}
    plain = {short_name(facts.name).lower(): short_name(facts.name) for facts in gpu_table()}
    wanted = " ".join(word for word in _words(text) if word not in _MAKERS or word == "rtx")
    close = [plain[name] for name in get_close_matches(wanted, plain, n=3, cutoff=0.4)]
    close += [names[name] for name in get_close_matches(" ".join(sorted(_words(text))), names, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(close))[:3]
    raise SettingError(
        f"No GPU is known as {text.strip()!r}.",
        f"The nearest names are {', '.join(near)}."
        if near
        else f"Known are {', '.join(list(plain.values())[:3])} and {len(plain) - 3} others.",
        "Use one of them, or describe the machine in a YAML file (see `shardwise fit --help`).",
    )
