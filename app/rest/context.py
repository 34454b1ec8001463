"""RestContext: what the routes share, and the making of answers that both kinds of completion have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.rest.admission import Admitted
from app.rest.answer import Answer
from app.rest.metrics import RestMetrics
from app.rest.schema import Generation
from app.rest.served import ServedEngine, ServedModels
from app.rest.settings import RestSettings
from app.rest.sse import AnswerResponse, Format, Places


@dataclass(frozen=True)
class RestContext:
    """The state of one endpoint."""

    models: ServedModels
    metrics: RestMetrics
    settings: RestSettings
    places: Places
    version: str

    def respond(
        self,
        body: Generation,
        choices: int,
        prefix: str,
        admit: Callable[[ServedEngine, str], Awaitable[Admitted]],
        shape: Callable[..., Format],
        logprobs: bool,
    ) -> AnswerResponse:
        """The answer to a completion of either kind.

        Raises:
            ModelNotFoundError: no such model.
            ApiError: too much is running.
        """
        name, served = self.models.get(body.model)
        metrics = self.metrics.of(name)
        self.places.check(choices)
        request_id = f"{prefix}-{secrets.token_hex(12)}"
        format_ = shape(
            request_id,
            name,
            int(time.time()),
            served.tokenizer,
            choices=choices,
            usage=body.include_usage,
            logprobs=logprobs,
        )

        async def start() -> Answer:
            return Answer(await admit(served, request_id), served, metrics)

        return AnswerResponse(start, format_, stream=bool(body.stream), places=self.places, count=choices)
