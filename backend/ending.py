"""Ending: pure rules for when a request's answer is complete, and whether it can be served at all."""

from __future__ import annotations

from collections.abc import Sequence as Many

from backend.events import End, EndReason
from backend.request import Request


def answer_end(request: Request, output: Many[int], limit: int) -> EndReason | None:
    """Why the answer is complete with this output, or None while it goes on.

    `limit` counts the positions that prompt and answer may take. A stop token before `min_tokens` does not end it.
    """
    sampling = request.sampling
    if output and len(output) > sampling.min_tokens and output[-1] in sampling.stop_tokens:
        return "stop"
    if len(output) >= sampling.max_tokens or len(request.prompt) + len(output) >= limit:
        return "length"
    return None


def refusal(request: Request, max_context: int, limit: int) -> str | None:
    """Why this request can never be served, for its client; None where it can.

    `limit` is `max_context`, or less where the page pool holds fewer positions of a single sequence.
    """
    prompt = len(request.prompt)
    if prompt == 0:
        return "The prompt is empty: it needs at least one token."
    if prompt + 1 > max_context:
        return f"The prompt has {prompt} tokens, and prompt and answer share a context of {max_context}."
    if prompt + 1 > limit:
        return f"The prompt has {prompt} tokens, and the page pool holds a sequence of at most {limit}."
    return None


def end_at_once(request: Request, max_context: int, limit: int) -> End | None:
    """The end of a request that can never be served, or whose answer is complete with what was there before it.

    `max_context`, `limit`: as in `refusal`.
    """
    message = refusal(request, max_context, limit)
    if message is not None:
        return End(request.id, "error", message)
    reason = answer_end(request, request.prior, limit)
    return None if reason is None else End(request.id, reason)
