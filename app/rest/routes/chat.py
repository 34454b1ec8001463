"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.rest.admission import Admitted, admit_chat
from app.rest.auth import key_id
from app.rest.chat_format import ChatFormat
from app.rest.context import RestContext
from app.rest.schema import ChatRequest
from app.rest.served import ServedEngine


def chat_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_class=Response)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Answers a conversation; with `stream`, as server-sent events."""

        async def admit(served: ServedEngine, request_id: str) -> Admitted:
            return await admit_chat(body, served, context.settings, request_id)

        return context.respond(
            body, body.n or 1, "chatcmpl", admit, ChatFormat, bool(body.logprobs), key_id(http.scope)
        )

    return router
