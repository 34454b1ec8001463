"""prepare: settings, a model's and a machine's facts, up to the Draft; `decide` adds its pool, `fit` judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.hardware.machine import Machine
from backend.planner import hosted, memory, tiers
from backend.planner.draft import Draft, Wishes, with_host
from backend.planner.kv_choice import KVChoice, choose_formats
from backend.planner.model_facts import ModelFacts
from backend.planner.ranks import choose_ranks
from backend.planner.target import Target, choose_dtype
from kvcache.layout import build_layout

PAGE_TOKENS = 16
_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
_MAX_SEQUENCES = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True, slots=True)
class Prepared:
    """All of a Plan but its pool.

    Attributes:
        reasons: sentences, those that come before the pool's and those that come after.
        host_reason: why the host tier is as large as it is.
    """

    draft: Draft
    reasons: tuple[tuple[str, ...], tuple[str, ...]]
    host_reason: str


def wish(
    settings: EngineSettings,
    facts: ModelFacts,
    targets: Sequence[Target],
    weights: str,
    weights_bytes: int | None = None,
    measured: KVChoice | None = None,
) -> tuple[Wishes, tuple[str, str, str]]:
    """The settings as far as the devices' kind resolves them; and why the dtype, K's and V's formats and the step."""
    dtype, dtype_reason = choose_dtype(settings.dtype, _weakest(targets))
    step_tokens, max_sequences, step_reason = _step(settings, targets[0])
    if weights_bytes is None:
        weights_bytes = memory.weights_bytes(facts, dtype, weights, targets[0].cuda)
    choice = choose_formats(settings.kv_format, measured)
    layout = build_layout(facts.layers, memory.ELEMENT_BYTES[dtype], PAGE_TOKENS, choice.formats)
    wishes = Wishes(settings, facts, layout, dtype, step_tokens, max_sequences, weights_bytes, weights)
    return wishes, (dtype_reason, choice.reason, step_reason)


def prepare(
    settings: EngineSettings,
    facts: ModelFacts,
    machine: Machine,
    targets: Sequence[Target],
    weights: str,
    weights_reason: str,
    weights_bytes: int | None = None,
    measured: KVChoice | None = None,
) -> Prepared:
    """The Draft with weights in that format; arguments are `decide`'s.

    Raises SettingError for what cannot be obeyed, OutOfMemoryError where host memory is too small for layers there.
    """
    wishes, (dtype_reason, kv_reason, step_reason) = wish(settings, facts, targets, weights, weights_bytes, measured)
    chosen = choose_ranks(wishes, machine, targets)
    draft = hosted.host_layers(chosen.draft, machine)
    in_host = draft.hosted.host_bytes if draft.hosted else 0
    host_pages, host_reason = tiers.host_pages(settings, machine, targets[0], draft.page_bytes, in_host)
    before = (*chosen.reasons, dtype_reason, weights_reason, hosted.reason(draft), kv_reason)
    return Prepared(with_host(draft, host_pages), (before, (step_reason,)), host_reason)


def _weakest(targets: Sequence[Target]) -> Target:
    """The device whose types decide: one that does not multiply bfloat16 where there is one, else the first."""
    return min(targets, key=lambda target: target.native_bfloat16)


def _step(settings: EngineSettings, target: Target) -> tuple[int, int, str]:
    """Token budget of a step, and the most sequences in it: each sequence needs room for one token."""
    kind = "cuda" if target.cuda else "cpu"
    tokens, sequences = settings.step_tokens, settings.max_sequences
    if tokens is not None and sequences is not None and sequences > tokens:
        raise SettingError(
            f"--max-sequences {sequences} does not fit --step-tokens {tokens}.",
            "Each sequence of a step needs at least one token of its budget.",
            f"Use --step-tokens {sequences} or more, or fewer sequences.",
        )
    if tokens is None:
        tokens = max(_STEP_TOKENS[kind], sequences or 0)
    if sequences is None:
        sequences = min(_MAX_SEQUENCES[kind], tokens)
    return tokens, sequences, f"A step computes up to {tokens} tokens of up to {sequences} sequences."
