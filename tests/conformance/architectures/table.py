"""The matrix as a table for people: ARCHITECTURES.md."""

from __future__ import annotations

import torch
import transformers

from tests.conformance.architectures.judge import STAGED_WAYS, WAYS, Row, Way

_HEAD = """# Architectures

Written by `python -m tests.conformance.architectures`, which runs every causal language model type of transformers
{version} that has a plan for tensor parallelism: with tiny random weights in float32, sizes that do not divide nicely,
over processes that talk through Gloo (torch {torch}, CPU). A type works where greedy tokens after several prompts are
those of transformers' own forward, and all logits lie within 1e-3 of it, in every column: TP n divides heads, MLPs and
the vocabulary over n ranks, EP n whole experts. Numbers are the largest distance of a logit. Without any one layer's
attention, or any one expert, the answers would have been others. Types that choose the keys of each token are served
as far as they choose all of them, and refuse longer contexts: "as long as each token attends to all others".

{works} of {total} types work, {refused} are refused by name, {wrong} {are} wrong.

| type | {ways} | verdict |
|---|{lines}|---|
"""


_STAGED_HEAD = """# Architectures in stages

Written by `python -m tests.conformance.architectures --stages`, which runs the types of ARCHITECTURES.md in the same
way (transformers {version}, torch {torch}, CPU), cut into stages of as many layers each that hand on hidden states:
PP n are n stages, PP n x TP m are n stages of m ranks each. A type is refused where its layers hand on more than that.

{works} of {total} types work, {refused} are refused by name, {wrong} {are} wrong.

| type | {ways} | verdict |
|---|{lines}|---|
"""


def markdown(rows: list[Row], ways: tuple[Way, ...] = WAYS) -> str:
    """The whole file."""
    verdicts = [row.verdict.partition(":")[0] for row in rows]
    head = (_STAGED_HEAD if ways is STAGED_WAYS else _HEAD).format(
        version=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        works=verdicts.count("works"),
        total=len(rows),
        refused=verdicts.count("refused"),
        wrong=verdicts.count("wrong"),
        are="is" if verdicts.count("wrong") == 1 else "are",
        ways=" | ".join(way.title for way in ways),
        lines="|".join("---" for _ in ways),
    )
    return head + "".join(line(row, ways) + "\n" for row in rows)


def line(row: Row, ways: tuple[Way, ...] = WAYS) -> str:
    """One row: type, largest error of each way, verdict."""
    errors = [f"{row.errors[way.title]:.0e}" if way.title in row.errors else "-" for way in ways]
    return f"| {row.name} | {' | '.join(errors)} | {' '.join(row.verdict.split()).replace('|', '/')} |"
