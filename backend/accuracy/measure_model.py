"""measure_model: loads a model and measures every KV format on it, as `shardwise doctor --kv` asks."""

from __future__ import annotations

import msgspec

from backend.accuracy.automatic import candidates, own
from backend.accuracy.choose import BOTH, VALUES_ONLY, choose
from backend.accuracy.measure import FIRST_STOP, Limits, measure
from backend.accuracy.messages import AccuracyRequest
from backend.accuracy.report import AccuracyReport
from backend.accuracy.store import accuracy_key, default_store
from backend.accuracy.text import text_tokens
from backend.compose_engine import OnProgress, load_served, plan_engine
from backend.errors import SettingError
from backend.hardware.machine import read_machine
from backend.planner.memory import ELEMENT_BYTES
from backend.planner.model_facts import ModelFacts
from backend.planner.plan import Plan
from backend.surgery.describe import describe
from backend.surgery.load import read_config
from kvcache.attention.table import attention_kernels
from kvcache.layout import build_layout
from quant.kv_format import parse_kv_formats

NAMES = (*BOTH, *VALUES_ONLY)


def measure_model(request: AccuracyRequest, on_progress: OnProgress) -> AccuracyReport:
    """The formats at 512 tokens and at the longest context that the request and its time allow.

    What was found is kept, so that an engine's start with --kv-format auto need not measure.

    Raises:
        ShardwiseError: the model cannot be served here, or the request asks for a longer context than there is.
    """
    on_progress("read", 0, 0)
    # On one device: what a format does to answers is the same on several.
    settings, machine = msgspec.structs.replace(request.settings, tensor_parallel=1), read_machine()
    plan = plan_engine(settings)
    text = text_tokens(settings.files, plan.max_context)
    tokens = _longest(request, plan, describe(read_config(settings.files)), len(text))
    model, team = load_served(settings, plan, on_progress)
    kernels = attention_kernels(team)
    contexts = measure(
        model,
        text,
        own(kernels),
        candidates(NAMES, kernels),
        Limits(tokens, request.greedy, request.seconds),
        lambda done, total: on_progress("measure", done, total),
    )
    device = plan.ranks[0].device
    if contexts[0].tokens >= FIRST_STOP:
        default_store().write(accuracy_key(settings.files, plan.dtype, device, machine, plan.weight_format), contexts)
    choice = choose(contexts)
    return AccuracyReport(
        model=plan.model,
        dtype=plan.dtype,
        device=device,
        contexts=contexts,
        chosen=str(choice.formats),
        reason=choice.reason,
    )


def _longest(request: AccuracyRequest, plan: Plan, facts: ModelFacts, text: int) -> int:
    """Tokens to measure at most: all formats' pages together must fit the memory that the plan gives to one pool."""
    layouts = [
        build_layout(facts.layers, ELEMENT_BYTES[plan.dtype], formats=parse_kv_formats(name))
        for name in ("model", *NAMES)
    ]
    room = plan.pages * plan.page_bytes // sum(layout.bytes_per_token for layout in layouts)
    limits = {
        f"the model's context, {plan.max_context},": plan.max_context - request.greedy,
        "the memory for pages": room - request.greedy - 16 * len(layouts),
        f"the text, {text} tokens,": text - 1,
    }
    narrowest = min(limits, key=lambda name: limits[name])
    most = limits[narrowest]
    if most < 1 or (request.tokens or 1) > most:
        raise SettingError(
            f"A context of {request.tokens or 1} tokens cannot be measured.",
            f"With {request.greedy} generated tokens after it, {narrowest} allows {max(0, most)}.",
            f"Use --kv-context {most} or less." if most > 0 else "Free memory, or give the pages more: --kv-pool.",
        )
    return request.tokens or most
