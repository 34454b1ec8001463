"""GpuWords: which GPU a case's words mean, by the table of GPUs, and how much memory it has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.hardware.gpu_table import GpuFacts, gpu_table

# Words of names that do not tell kinds apart.
_COMMON = frozenset(
    (
        *("nvidia", "amd", "tesla", "geforce", "rtx", "radeon", "instinct", "generation", "edition", "server"),
        *("pcie", "sxm", "sxm2", "sxm4", "sxm5", "hbm3"),
    )
)
_GIB = re.compile(r"(\d+(?:\.\d+)?)\s*GiB", re.IGNORECASE)
_GB = re.compile(r"(\d{1,3})\s*G(?:B)?\b", re.IGNORECASE)
_MIB = re.compile(r"(\d{4,6})\s*MiB", re.IGNORECASE)
# CUDA reports a little less than what a card of so many GB is sold as.
_REPORTED = 0.982
# Kinds whose memory differs by less than this part are not told apart by it.
_NEAR = 0.15


@dataclass(frozen=True, slots=True)
class GpuWords:
    """`memory_gib` as CUDA reports it, None where nothing tells; `facts` None for a kind that is not in the table."""

    name: str
    memory_gib: float | None
    facts: GpuFacts | None

    @property
    def capability(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"(\d+)\.(\d+)", self.facts.compute_capability) if self.facts else None
        return (int(found[1]), int(found[2])) if found else None


def gpu_of(text: object, stated_gib: float | None = None) -> GpuWords:
    """Whatever a case calls its GPU. `stated_gib`: its memory, where the case tells it."""
    words = str(text or "")
    sold = [float(size) for size in _GB.findall(words)]
    told = stated_gib or _told(words)
    facts = _kind(words, told or (sold[0] * _REPORTED if sold else None))
    memory = told or _memory(facts, sold)
    return GpuWords(words if facts is None else facts.name, memory, facts)


def _memory(facts: GpuFacts | None, sold: list[float]) -> float | None:
    """As the table tells it, unless the card is sold in sizes and the words name another."""
    if facts is not None and (not sold or _near(facts, sold[0] * _REPORTED)):
        return facts.mem_total_gib_reported
    return sold[0] * _REPORTED if sold else None


def _near(facts: GpuFacts, memory: float) -> bool:
    return abs(facts.mem_total_gib_reported - memory) < _NEAR * memory


def _told(words: str) -> float | None:
    found = _GIB.search(words)
    if found is not None:
        return float(found[1])
    found = _MIB.search(words)
    return float(found[1]) / 1024 * _REPORTED if found is not None else None


def _kind(words: str, memory: float | None) -> GpuFacts | None:
    """The kind all of whose telling words are among these; of several, that with most of them, then the memory."""
    given = set(_split(words))
    found = [(facts, telling) for facts in gpu_table() if (telling := _telling(facts)) and telling <= given]
    if not found:
        return None
    most = max(len(telling) for _, telling in found)
    best = [facts for facts, telling in found if len(telling) == most]
    if memory is None:
        return best[0]
    near = next((facts for facts in best if _near(facts, memory)), None)
    return near or min(best, key=lambda facts: abs(facts.mem_total_gib_reported - memory))


def _telling(facts: GpuFacts) -> frozenset[str]:
    return frozenset(word for word in _split(facts.nvml_match) if word not in _COMMON and not _GB.fullmatch(word))


def _split(words: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(\d)x\b", r"\1 x", words.lower())) if word]
