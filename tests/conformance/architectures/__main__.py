"""`python -m tests.conformance.architectures [NAME…]`: prints the matrix, and writes it if it is whole."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from tests.conformance.architectures.judge import WAYS, Row, judge
from tests.conformance.architectures.shrink import types
from tests.conformance.architectures.table import line, markdown
from tests.conformance.architectures.team import Team

FILE = Path(__file__).parents[1] / "ARCHITECTURES.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="Every architecture, divided, against transformers' own forward.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="types of transformers; without any, all of them")
    names = parser.parse_args().names
    every = types()
    unknown = [name for name in names if name not in every]
    if unknown:
        parser.error(f"no causal language model type with a tp_plan: {', '.join(unknown)}")
    rows = _rows(names or list(every))
    if not names:
        FILE.write_text(markdown(rows), "utf-8")
    wrong = [row.name for row in rows if row.verdict.startswith("wrong")]
    print(f"{sum(row.works for row in rows)} of {len(rows)} work; wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _rows(names: list[str]) -> list[Row]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    size = max(len(way.attention) for way in WAYS)
    with tempfile.TemporaryDirectory() as meeting, Team(size, Path(meeting)) as team:
        for name in names:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                rows.append(judge(name, types()[name], team, Path(folder)))
            print(f"{line(rows[-1])} {time.monotonic() - began:.1f} s", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
