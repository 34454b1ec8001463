"""Who lives in a process group, as Linux tells it. A zombie counts as dead: it holds neither memory nor devices."""

from __future__ import annotations

from pathlib import Path


def living_members(group: int, root: Path = Path("/proc")) -> list[int]:
    """Process ids, in no order; none where the system does not tell. `root` is where processes are listed."""
    return [int(entry.name) for entry in root.glob("[0-9]*") if _is_living_member(entry, group)]


def _is_living_member(entry: Path, group: int) -> bool:
    try:
        text = (entry / "stat").read_text(errors="replace")
    except OSError:
        return False
    # pid (name) state parent group ...; a name may hold anything, parentheses too.
    state, _, its_group = text.rpartition(")")[2].split()[:3]
    return state not in "ZX" and int(its_group) == group
