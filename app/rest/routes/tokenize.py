"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from msgspec import json

from app.rest.admission import chat_tokens, check_tokens, prompt_tokens
from app.rest.context import RestContext
from app.rest.errors import ApiError
from app.rest.schema import DetokenizeRequest, TokenizeRequest
from backend.chat_template import off_loop


def tokenize_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize", response_class=Response)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a prompt or of messages. Longer than the context is fine here: nothing is computed."""
        _, served = context.models.get(body.model)
        if body.prompt is not None:
            tokens = await prompt_tokens(
                body.prompt, served, None, add=body.add_special_tokens, parse=body.parse_special
            )
        else:
            tokens = await chat_tokens(body, served, None)
        found: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": served.engine.max_context,
            "tokens": tokens,
        }
        if body.return_token_strs:
            found["token_strs"] = [served.tokenizer.token_text(token) for token in tokens]
        return Response(json.encode(found), media_type="application/json")

    @router.post("/detokenize", response_class=Response)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of tokens, special ones included."""
        _, served = context.models.get(body.model)
        check_tokens(body.tokens, served, "tokens")
        text = await off_loop(len(body.tokens), lambda: served.tokenizer.decode(body.tokens))
        if not isinstance(text, str):
            raise ApiError("The tokens have no text", param="tokens")
        return Response(json.encode({"prompt": text}), media_type="application/json")

    return router
