"""Request: what a client wants of the engine, as immutable plain data. Texts (stop strings, templates) stay behind."""

from __future__ import annotations

from msgspec import Struct


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen.

    Randomness depends only on `seed` and the index of the output token, never on the batch, so a replay after a
    fault draws the same tokens. `temperature` 0 is greedy.

    Attributes:
        temperature: divides the logits; 0 picks the largest.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep this many most likely tokens; None keeps all.
        min_p: drop tokens less likely than this share of the likeliest; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off.
        presence_penalty: subtracted once from the logits of tokens in the answer.
        frequency_penalty: subtracted per occurrence from the logits of tokens in the answer.
        logit_bias: added to the logits, by token id.
        seed: 64-bit seed, always set (the server draws one where the client gave none).
        logprobs: None for none; else how many most likely alternatives to report beside the chosen token's.
        stop_tokens: tokens that end the answer (the model's end tokens, unless ignored, and the client's).
        min_tokens: stop tokens cannot be sampled before this many output tokens.
        max_tokens: the answer ends after this many tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    logprobs: int | None = None
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int = 16

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


class Request(Struct, frozen=True, kw_only=True):
    """One answer wanted of the engine. A client's `n` answers are `n` Requests.

    Attributes:
        id: unique among live requests.
        prompt: token ids, at least one.
        prior: output tokens that this request already has (a replay after a fault); they count as output for
            penalties, `min_tokens`, `max_tokens` and the sampling index, and are not reported again.
        sampling: how to choose tokens.
        cache_salt: requests with unequal salts never share cached pages; the server makes it of the client's API key.
        owner: tags the pages on disk, so that revoking the API key deletes them: 16 bytes, or empty for nobody's.
        priority: smaller runs first; equal priorities run in order of arrival.
        hand_over: its cached pages are put where another engine finds them, before its end is told.
        timeout: seconds from submission after which the request ends with reason "deadline"; None waits forever.
    """

    id: str
    prompt: tuple[int, ...]
    prior: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    cache_salt: bytes = b""
    owner: bytes = b""
    priority: int = 0
    hand_over: bool = False
    timeout: float | None = None
