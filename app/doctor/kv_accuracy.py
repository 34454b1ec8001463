"""How accurate a model's KV formats are here: has it measured, and shows it. Measuring is `backend.accuracy`'s."""

from __future__ import annotations

import msgspec

from backend.accuracy.messages import AccuracyRequest
from backend.accuracy.process import OnProgress, measure_accuracy
from backend.accuracy.report import AccuracyReport, ContextAccuracy, FormatAccuracy
from backend.engine_settings import EngineSettings

_HEADS = ("format", "bytes/token", "perplexity", "change", "mean KLD", "first difference", "verdict")


def kv_accuracy(
    settings: EngineSettings, tokens: int | None, seconds: float, on_progress: OnProgress
) -> AccuracyReport:
    """Every format beside the model's own, on the device and in the dtype of the settings.

    Blocks; `on_progress(stage, done, total)` may raise to stop it. The wizard calls it from a thread.

    Raises:
        ShardwiseError: the model cannot be measured here.
    """
    plain = msgspec.structs.replace(settings, kv_format="model", host_cache=0, disk_cache=0)
    return measure_accuracy(AccuracyRequest(settings=plain, tokens=tokens, seconds=seconds), on_progress)


def as_table(report: AccuracyReport) -> str:
    """A table for each length of the text, then what auto takes."""
    lines = [f"{report.model} in {report.dtype} on {report.device}, over Alice's Adventures in Wonderland"]
    for context in report.contexts:
        lines += ["", _title(context), *_aligned([_HEADS, *(_row(one, context) for one in context.formats)])]
    return "\n".join([*lines, "", f"--kv-format auto takes {report.chosen}. {report.reason}"])


def _title(context: ContextAccuracy) -> str:
    return f"{context.tokens:,} tokens, and {context.generated} generated after them"


def _row(one: FormatAccuracy, context: ContextAccuracy) -> tuple[str, ...]:
    figures = (one.kv_format, f"{one.token_bytes:,}", f"{one.perplexity:.4g}")
    if one is context.formats[0]:
        return (*figures, "-", "-", "-", "the model's own")
    difference = "none" if one.first_difference is None else f"token {one.first_difference + 1}"
    verdict = "passes" if one.passes else "fails"
    return (*figures, f"{one.change:+.2%}", f"{one.divergence:.1e}", difference, verdict)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Words to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    last = len(_HEADS) - 1
    return [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
