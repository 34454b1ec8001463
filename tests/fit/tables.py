"""Prints the tables of `docs/` again: `python -m tests.fit.tables` runs every `$ shardwise ...` block in place.

A block is fenced as `console`; its first line is the command, what follows is what the command printed. The text around
stays. With --check nothing is written, and blocks that would change are named.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from app.cli import application

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```console\n\$ (?P<command>shardwise (?:[^\n]*\\\n)*[^\n]*)\n(?P<output>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Block:
    """A command of a page with what the page says it prints."""

    page: Path
    command: str
    output: str


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """All of a page, in order; `text` is what it holds, where that is known."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8") if text is None else text)
    return [Block(page, match["command"], match["output"]) for match in found]


def printed(command: str) -> str:
    """What a command prints now, in a pipe.

    Raises:
        ValueError: it ends with another status than "fits" or "does not fit".
    """
    program, *arguments = shlex.split(command)
    result = CliRunner().invoke(application, arguments, prog_name=program)
    if result.exit_code not in (0, 3):
        raise ValueError(f"{command}: status {result.exit_code}: {result.output}{result.exception or ''}")
    return result.stdout


def renewed(page: Path) -> tuple[str, list[Block]]:
    """The page with outputs of now, and the blocks that are others than they were."""
    text = page.read_text(encoding="utf-8")
    now = _BLOCK.sub(lambda match: f"```console\n$ {match['command']}\n{printed(match['command'])}```", text)
    old = blocks(page, text)
    return now, [new for before, new in zip(old, blocks(page, now), strict=True) if before != new]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; end with 1 where a block would change.")
    check = parser.parse_args().check
    began, changed, seen = time.perf_counter(), 0, 0
    for page in sorted(DOCS.glob("*.md")):
        text, stale = renewed(page)
        changed, seen = changed + len(stale), seen + len(blocks(page, text))
        if not check:
            page.write_text(text, encoding="utf-8")
        for block in stale:
            print(f"{page.name}: {'would change' if check else 'renewed'}: $ {block.command}")
    print(f"{changed} blocks of {seen}, {time.perf_counter() - began:.1f} s")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
