"""Holds predicted memory to logged: python -m tests.fit.cases FILE.jsonl

Prints predicted beside logged for each row and term, the errors when one source is left out, and ends with one JSON
line. Nothing that was observed enters a prediction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.fit.case_report import print_report
from tests.fit.case_score import ScoredCase, score, summary


def main(arguments: list[str]) -> int:
    """Exit status 0, and 2 where the file cannot be read."""
    if len(arguments) != 1:
        print("usage: python -m tests.fit.cases FILE.jsonl", file=sys.stderr)
        return 2
    try:
        lines = Path(arguments[0]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        print(f"{arguments[0]} cannot be read: {error}", file=sys.stderr)
        return 2
    cases = [read_case(line) for line in lines if line.strip()]
    print_report(cases)
    print(msgspec.json.encode(summary(cases)).decode())
    return 0


def read_case(line: str) -> ScoredCase:
    """One line of a file, scored; a line that is no object is skipped with that reason."""
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError:
        row = None
    if not isinstance(row, dict):
        return ScoredCase(id="?", source="?", skipped="no JSON object")
    return score(row)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
