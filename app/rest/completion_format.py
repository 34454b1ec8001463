"""CompletionFormat: the shape of `/v1/completions`, streamed and whole."""

from __future__ import annotations

from typing import Any

import msgspec

from app.rest.answer import Piece
from app.rest.chat_format import usage_counts
from app.rest.logprobs import CompletionLogprobs
from backend.tokenizer import ModelTokenizer

_encode = msgspec.json.encode


class CompletionFormat:
    """One completion; arguments as `ChatFormat`'s."""

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
        self._id, self._model, self._created, self._usage = request_id, model, created, usage
        head = _encode({"id": request_id, "object": "text_completion", "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if usage else b"]}") + b"\n\n"
        self._logprobs = [CompletionLogprobs(tokenizer) for _ in range(choices)] if logprobs else None
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._reasons: list[str | None] = [None] * choices

    def opening(self) -> bytes:
        return b""

    def event(self, piece: Piece) -> bytes:
        if not piece.text and piece.reason is None and self._logprobs is None:
            return b""
        logprobs = b"null"
        if self._logprobs is not None and piece.token is not None:
            lists = self._logprobs[piece.index]
            lists.add(piece.token)
            logprobs = _encode(lists.lists())
            lists.clear()
        reason = b"null" if piece.reason is None else b'"%s"' % piece.reason.encode()
        text = _encode(piece.text)
        choice = b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":%s}'
        return self._head + choice % (piece.index, text, logprobs, reason) + self._tail

    def closing(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        if not self._usage:
            return b""
        counts = _encode(usage_counts(prompt_tokens, completion_tokens, cached_tokens))
        return self._head + b'],"usage":' + counts + b"}\n\n"

    def collect(self, piece: Piece) -> None:
        self._texts[piece.index].append(piece.text)
        if self._logprobs is not None and piece.token is not None:
            self._logprobs[piece.index].add(piece.token)
        if piece.reason is not None:
            self._reasons[piece.index] = piece.reason

    def body(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> bytes:
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "text": "".join(texts),
                "logprobs": self._logprobs[index].lists() if self._logprobs is not None else None,
                "finish_reason": self._reasons[index],
            }
            for index, texts in enumerate(self._texts)
        ]
        return _encode(
            {
                "id": self._id,
                "object": "text_completion",
                "created": self._created,
                "model": self._model,
                "choices": choices,
                "usage": usage_counts(prompt_tokens, completion_tokens, cached_tokens),
            }
        )
