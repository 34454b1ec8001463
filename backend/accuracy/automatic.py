"""What --kv-format auto measures when an engine starts: FP8 and INT8, and for V alone where neither passes for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backend.accuracy.choose import BOTH, VALUES_ONLY, needs_values_only
from backend.accuracy.measure import Candidate, Limits, measure
from backend.accuracy.report import ContextAccuracy
from backend.accuracy.text import text_tokens
from backend.library.files import ModelFiles
from backend.surgery.model import ServedModel
from kvcache.attention.kernel import AttentionKernel
from kvcache.attention.table import attention_kernels
from quant.kv_format import KVFormats, parse_kv_formats

if TYPE_CHECKING:
    from quant.cpu.team import Team

# A start is not held up for longer by each of the two measurements; slow machines compare fewer tokens.
SECONDS = 30.0

OnProgress = Callable[[int, int], None]


def measure_for_start(
    model: ServedModel, files: ModelFiles, team: Team | None, on_progress: OnProgress
) -> tuple[ContextAccuracy, ...]:
    """What `choose` needs to know, over at most 512 tokens."""
    limits = Limits(seconds=SECONDS)
    text, kernels = text_tokens(files, limits.tokens + 1), attention_kernels(team)
    measured = measure(model, text, own(kernels), candidates(BOTH, kernels), limits, on_progress)
    if needs_values_only(measured):
        measured += measure(model, text, own(kernels), candidates(VALUES_ONLY, kernels), limits, on_progress)
    return measured


def own(kernels: tuple[AttentionKernel, ...]) -> Candidate:
    """The model's own format."""
    return Candidate(KVFormats(), kernels)


def candidates(names: Sequence[str], kernels: tuple[AttentionKernel, ...]) -> list[Candidate]:
    return [Candidate(parse_kv_formats(name), kernels) for name in names]
