"""`python -m tests.conformance.architectures [--stages] [NAME…]`: prints a matrix, and writes it if it is whole."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from tests.conformance.architectures.judge import STAGED_WAYS, WAYS, Row, Way, judge
from tests.conformance.architectures.shrink import types
from tests.conformance.architectures.table import line, markdown
from tests.conformance.architectures.team import Team

FILE = Path(__file__).parents[1] / "ARCHITECTURES.md"
STAGED_FILE = Path(__file__).parents[1] / "STAGES.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="Every architecture, divided, against transformers' own forward.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="types of transformers; without any, all of them")
    parser.add_argument("--stages", action="store_true", help="cut into stages instead of divided")
    asked = parser.parse_args()
    names: list[str] = asked.names
    ways = STAGED_WAYS if asked.stages else WAYS
    every = types()
    unknown = [name for name in names if name not in every]
    if unknown:
        parser.error(f"no causal language model type with a tp_plan: {', '.join(unknown)}")
    rows = _rows(names or list(every), ways)
    if not names:
        (STAGED_FILE if asked.stages else FILE).write_text(markdown(rows, ways), "utf-8")
    wrong = [row.name for row in rows if row.verdict.startswith("wrong")]
    print(f"{sum(row.works for row in rows)} of {len(rows)} work; wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _rows(names: list[str], ways: tuple[Way, ...]) -> list[Row]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    size = max(len(way.attention) for way in ways)
    with tempfile.TemporaryDirectory() as meeting, Team(size, Path(meeting)) as team:
        for name in names:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                rows.append(judge(name, types()[name], team, Path(folder), ways))
            print(f"{line(rows[-1], ways)} {time.monotonic() - began:.1f} s", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
