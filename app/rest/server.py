"""create_app: puts the endpoint together from its routes and doors. Engines, keys and settings are given to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.types import ASGIApp

from app.keys import KeyStore
from app.rest.auth import DoorMiddleware
from app.rest.context import RestContext
from app.rest.errors import install
from app.rest.limits import LimitMiddleware
from app.rest.metrics import RestMetrics
from app.rest.routes.cache import cache_router
from app.rest.routes.chat import chat_router
from app.rest.routes.completions import completions_router
from app.rest.routes.models import models_router
from app.rest.routes.peers import peers_router
from app.rest.routes.plan import plan_router
from app.rest.routes.status import status_router
from app.rest.routes.tokenize import tokenize_router
from app.rest.served import ServedEngine, ServedModels
from app.rest.settings import RestSettings
from app.rest.sse import Places
from backend.hardware.gpu import GpuReading


def create_app(
    engines: Mapping[str, ServedEngine],
    keys: KeyStore,
    settings: RestSettings | None = None,
    cache_secret: bytes = b"",
    gpus: Callable[[], GpuReading | None] = lambda: None,
    fallback: str | None = None,
) -> FastAPI:
    """The endpoint over engines by model name, the main one first.

    The engines are started, drained and stopped by the caller. `cache_secret` separates the cached pages of API keys.
    `gpus` tells how the GPUs are now, for metrics. `fallback` is the model that answers while the main one is away.
    """
    settings = settings or RestSettings()
    app = FastAPI(
        title="shardwise",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # One shape of error, ours; FastAPI's own would be wrong in the description.
        responses={400: {"description": "The request is refused; the body has OpenAI's error shape."}},
    )
    models = ServedModels(engines, fallback)
    metrics = RestMetrics({name: served.engine for name, served in models}, gpus)
    context = RestContext(models, metrics, settings, Places(settings.active_answers), _version(), cache_secret)
    for make in (
        chat_router,
        completions_router,
        models_router,
        tokenize_router,
        status_router,
        plan_router,
        cache_router,
        peers_router,
    ):
        app.include_router(make(context))
    install(app)
    _guard(app, keys, settings)
    return app


def _guard(app: FastAPI, keys: KeyStore, settings: RestSettings) -> None:
    """Outermost the doors, which look at nothing but path and headers; then the limits on what comes in."""

    def limits(inner: ASGIApp) -> ASGIApp:
        return LimitMiddleware(inner, settings)

    def doors(inner: ASGIApp) -> ASGIApp:
        return DoorMiddleware(inner, keys, settings)

    app.add_middleware(limits)
    app.add_middleware(doors)


def _version() -> str:
    try:
        return version("shardwise")
    except PackageNotFoundError:
        return "0"
