"""`/v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.rest.context import RestContext
from app.rest.served import ServedEngine


def models_router(context: RestContext) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The served models, the main one first."""
        return {"object": "list", "data": [_card(name, served) for name, served in context.models]}

    @router.get("/v1/models/{model:path}")
    async def one_model(model: Annotated[str, Path(max_length=4096)]) -> dict[str, Any]:
        """One served model."""
        return _card(*context.models.get(model))

    return router


def _card(name: str, served: ServedEngine) -> dict[str, Any]:
    """A model with its context length under each of the names that clients look for; null until it is known."""
    context = served.engine.max_context
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "shardwise",
        "root": name,
        "parent": None,
        "max_model_len": context,
        "context_length": context,
        "meta": {"n_ctx_train": served.tokenizer.trained_context or context},
    }
