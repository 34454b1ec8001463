"""`/v1/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.rest.admission import Admitted, admit_completion
from app.rest.auth import key_id
from app.rest.completion_format import CompletionFormat
from app.rest.context import RestContext
from app.rest.schema import CompletionRequest
from app.rest.served import ServedEngine


def completions_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", response_class=Response)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Continues one or several prompts, given as text or as tokens."""

        async def admit(served: ServedEngine, request_id: str) -> Admitted:
            return await admit_completion(body, served, context.settings, request_id)

        choices = len(body.prompts()) * (body.n or 1)
        return context.respond(
            body, choices, "cmpl", admit, CompletionFormat, body.logprobs is not None, key_id(http.scope)
        )

    return router
