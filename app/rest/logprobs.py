"""Log probabilities in OpenAI's two dialects: a list of entries (chat), and parallel lists (completions)."""

from __future__ import annotations

from typing import Any

from backend.events import Token
from backend.tokenizer import ModelTokenizer

# What OpenAI reports for a token that cannot occur; JSON has no minus infinity.
_LOWEST = -9999.0


def chat_logprob(token: Token, tokenizer: ModelTokenizer) -> dict[str, Any]:
    """A token's entry in `logprobs.content`."""
    return {
        **_entry(token.token, token.logprob, tokenizer),
        "top_logprobs": [_entry(other, logprob, tokenizer) for other, logprob in token.top],
    }


class CompletionLogprobs:
    """The lists of one choice of `/v1/completions`."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0
        self.clear()

    def clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float] = []
        self._top: list[dict[str, float]] = []
        self._offsets: list[int] = []

    def add(self, token: Token) -> None:
        text = self._tokenizer.token_text(token.token)
        self._tokens.append(text)
        self._logprobs.append(_bounded(token.logprob))
        top: dict[str, float] = {}
        for other, logprob in token.top:
            # Different tokens may read alike (halves of characters): the likelier one keeps the name.
            top.setdefault(self._tokenizer.token_text(other), _bounded(logprob))
        self._top.append(top)
        self._offsets.append(self._offset)
        self._offset += len(text)

    def lists(self) -> dict[str, Any]:
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }


def _entry(token: int, logprob: float | None, tokenizer: ModelTokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": _bounded(logprob), "bytes": list(data)}


def _bounded(logprob: float | None) -> float:
    return _LOWEST if logprob is None or not logprob > _LOWEST else logprob
