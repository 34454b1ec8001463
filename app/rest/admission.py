"""Admission: the one check that every door passes before the engine sees a request, and makes its Requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from app.rest.errors import ApiError
from app.rest.schema import ChatRequest, CompletionRequest, Generation, TokenizeRequest
from app.rest.served import ServedEngine
from app.rest.settings import RestSettings
from backend.chat_template import off_loop
from backend.errors import ContextOverflowError, EngineUnavailableError
from backend.request import Request, Sampling

_SEED_MASK = 2**63 - 1
# An odd constant with well mixed bits: choices of one request get seeds far apart.
_SEED_STRIDE = 0x9E3779B97F4A7C15
READY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run: `requests` by choice index, and what the texts of the answers need.

    `continues`: the answers go on from the prompt's text, rather than being turns of their own. `copies`: how many
    answers in a row each prompt has.
    """

    requests: tuple[Request, ...]
    prompt_tokens: int
    stop_strings: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    continues: bool
    copies: int = 1

    def of_client(self, salt: bytes, owner: bytes) -> Admitted:
        """The same, sharing cached pages only with requests of this salt."""
        requests = tuple(structs.replace(each, cache_salt=salt, owner=owner) for each in self.requests)
        return replace(self, requests=requests)


async def admit_chat(body: ChatRequest, served: ServedEngine, settings: RestSettings, request_id: str) -> Admitted:
    """Checks a chat and makes its Requests.

    Raises:
        ApiError, ContextOverflowError, ChatTemplateError, EngineUnavailableError: it is refused.
    """
    context = await _context(served)
    _check_count(1, body.n or 1, settings)
    prompt = await chat_tokens(body, served, context)
    top = None if not body.logprobs else body.top_logprobs or 0
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return _admit(body, [prompt], asked, top, served, settings, context, request_id)


async def admit_completion(
    body: CompletionRequest, served: ServedEngine, settings: RestSettings, request_id: str
) -> Admitted:
    """Checks a completion and makes its Requests; raises as `admit_chat`."""
    context = await _context(served)
    prompts = body.prompts()
    _check_count(len(prompts), body.n or 1, settings)
    tokens: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            tokens.append(
                await prompt_tokens(prompt, served, context, add=body.add_special_tokens, parse=body.parse_special)
            )
        else:
            check_tokens(prompt, served, "prompt")
            tokens.append(prompt)
    asked = 16 if body.max_tokens is None else body.max_tokens
    return _admit(body, tokens, asked, body.logprobs, served, settings, context, request_id)


async def chat_tokens(body: ChatRequest | TokenizeRequest, served: ServedEngine, limit: int | None) -> list[int]:
    """The prompt of messages; more than `limit` tokens are refused before all are encoded."""
    variables: dict[str, Any] = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort if isinstance(body, ChatRequest) else None
    if effort is not None:
        if not served.template.mentions("reasoning_effort"):
            raise ApiError("reasoning_effort is not supported by this model", param="reasoning_effort")
        variables["reasoning_effort"] = effort
    return await served.template.encode(
        [message.for_template() for message in body.messages or ()],
        limit=limit,
        # A message that is to be continued has no room for a new turn behind it.
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=variables,
    )


async def prompt_tokens(text: str, served: ServedEngine, limit: int | None, *, add: bool, parse: bool) -> list[int]:
    """The tokens of a raw prompt; more than `limit` are refused before all are encoded."""

    def run() -> list[int]:
        if limit is not None:
            served.tokenizer.check_length(text, limit)
        return served.tokenizer.encode_prompt(text, add_special=add, parse_special=parse)

    return await off_loop(len(text), run)


def check_tokens(tokens: Sequence[int], served: ServedEngine, param: str) -> None:
    """Refuses ids outside of the vocabulary, which would read past the embedding."""
    size = served.tokenizer.vocabulary
    if tokens and max(tokens) >= size:
        raise ApiError(f"{param}: token ids must be below {size}, the vocabulary's size", param=param)


async def _context(served: ServedEngine) -> int:
    """The model's context; while the engine starts for the first time, the request waits for it."""
    engine = served.engine
    if engine.max_context is None and not await engine.wait_ready(READY_SECONDS):
        raise EngineUnavailableError("The engine is not serving", engine.status().error)
    if engine.max_context is None:
        raise EngineUnavailableError("The engine is not serving")
    return engine.max_context


def _check_count(prompts: int, n: int, settings: RestSettings) -> None:
    if prompts * n > settings.answers:
        raise ApiError(
            f"{prompts} prompts x n {n} = {prompts * n} answers: at most {settings.answers} a request",
            param="n",
        )


def _admit(
    body: Generation,
    prompts: Sequence[Sequence[int]],
    asked: int | None,
    logprobs: int | None,
    served: ServedEngine,
    settings: RestSettings,
    context: int,
    request_id: str,
) -> Admitted:
    limits = [_output_limit(len(prompt), asked, context) for prompt in prompts]
    n = body.n or 1
    if n * sum(limits) > settings.output_tokens:
        raise ApiError(
            f"{len(prompts)} prompts x n {n} x max_tokens could be {n * sum(limits)} tokens: "
            f"at most {settings.output_tokens} a request",
            param="max_tokens",
        )
    if body.min_tokens is not None and body.min_tokens > min(limits):
        raise ApiError(f"min_tokens {body.min_tokens} is above max_tokens {min(limits)}", param="min_tokens")
    seed = body.seed if body.seed is not None else secrets.randbits(63)
    requests: list[Request] = []
    for prompt, limit in zip(prompts, limits, strict=True):
        for _ in range(n):
            index = len(requests)
            requests.append(
                Request(
                    id=f"{request_id}-{index}",
                    prompt=tuple(prompt),
                    sampling=_sampling(body, limit, logprobs, (seed + index * _SEED_STRIDE) & _SEED_MASK, served),
                    priority=body.priority,
                    timeout=body.timeout,
                )
            )
    return Admitted(
        tuple(requests),
        sum(map(len, prompts)),
        body.stop_strings,
        body.include_stop_str_in_output,
        body.skip_special_tokens,
        not isinstance(body, ChatRequest) or body.continue_final_message,
        n,
    )


def _output_limit(prompt: int, asked: int | None, context: int) -> int:
    if prompt == 0:
        raise ApiError("The prompt is empty: it needs at least one token", param="prompt")
    wanted = 1 if asked is None else asked
    if prompt + wanted > context:
        raise ContextOverflowError(
            f"This model's context is {context} tokens, but {prompt + wanted} were requested "
            f"({prompt} in the prompt, {wanted} for the answer)",
            hint="Shorten the prompt or ask for fewer tokens.",
        )
    return context - prompt if asked is None else asked


def _sampling(body: Generation, limit: int, logprobs: int | None, seed: int, served: ServedEngine) -> Sampling:
    defaults = served.tokenizer.defaults()

    def pick(value: float | None, default: float | None, otherwise: float) -> float:
        return value if value is not None else default if default is not None else otherwise

    top_k = body.top_k if body.top_k is not None else defaults.top_k
    stops = list(body.stop_token_ids or ())
    check_tokens(stops, served, "stop_token_ids")
    if not body.ignore_eos:
        stops += served.tokenizer.eos
    return Sampling(
        temperature=pick(body.temperature, defaults.temperature, 1.0),
        top_p=pick(body.top_p, defaults.top_p, 1.0),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        min_p=pick(body.min_p, defaults.min_p, 0.0),
        repetition_penalty=pick(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_bias(body.logit_bias or {}, served),
        seed=seed,
        logprobs=logprobs,
        stop_tokens=tuple(dict.fromkeys(stops)),
        min_tokens=body.min_tokens or 0,
        max_tokens=limit,
    )


def _bias(bias: Mapping[str, float], served: ServedEngine) -> dict[int, float]:
    found = {int(token): value for token, value in bias.items()}
    check_tokens(list(found), served, "logit_bias")
    return found
