"""ChatFormat: the shape of `/v1/chat/completions`, streamed and whole."""

from __future__ import annotations

from typing import Any

import msgspec

from app.rest.answer import Piece
from app.rest.logprobs import chat_logprob
from backend.tokenizer import ModelTokenizer

_encode = msgspec.json.encode


class ChatFormat:
    """One chat answer; the constant bytes around each delta are made once.

    Args:
        request_id: `chatcmpl-...`.
        choices: how many answers.
        usage: whether the stream ends with the counts.
        logprobs: whether tokens are reported with their log probabilities.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        created: int,
        tokenizer: ModelTokenizer,
        *,
        choices: int,
        usage: bool,
        logprobs: bool,
    ) -> None:
        self._id, self._model, self._created, self._tokenizer = request_id, model, created, tokenizer
        self._usage, self._logprobs = usage, logprobs
        head = _encode({"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if usage else b"]}") + b"\n\n"
        self._before = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)]
        self._after = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[dict[str, Any]]] = [[] for _ in range(choices)]
        self._reasons: list[str | None] = [None] * choices

    def opening(self) -> bytes:
        return b"".join(
            self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
            for index in range(len(self._before))
        )

    def event(self, piece: Piece) -> bytes:
        if not self._logprobs and piece.reason is None:
            # A token that is only the beginning of a character has nothing to say yet.
            return self._before[piece.index] + _encode(piece.text) + self._after if piece.text else b""
        found = b""
        if piece.text or (piece.token is not None and self._logprobs):
            logprobs = self._content([self._entry(piece)]) if piece.token is not None else None
            delta = {"content": piece.text}
            found = self._chunk({"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        if piece.reason is not None:
            found += self._chunk({"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.reason})
        return found

    def closing(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        if not self._usage:
            return b""
        counts = _encode(usage_counts(prompt_tokens, completion_tokens, cached_tokens))
        return self._head + b'],"usage":' + counts + b"}\n\n"

    def collect(self, piece: Piece) -> None:
        self._texts[piece.index].append(piece.text)
        if piece.token is not None and self._logprobs:
            self._tokens[piece.index].append(self._entry(piece))
        if piece.reason is not None:
            self._reasons[piece.index] = piece.reason

    def body(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
                "logprobs": self._content(self._tokens[index]) if self._logprobs else None,
                "finish_reason": self._reasons[index],
            }
            for index, texts in enumerate(self._texts)
        ]
        return _encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": choices,
                "usage": usage_counts(prompt_tokens, completion_tokens, cached_tokens),
            }
        )

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + _encode(choice) + self._tail

    def _entry(self, piece: Piece) -> dict[str, Any]:
        return chat_logprob(piece.token, self._tokenizer) if piece.token is not None else {}

    def _content(self, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": entries, "refusal": None} if self._logprobs else None


def usage_counts(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
