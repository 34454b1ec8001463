"""RestContext: what the routes share, and the making of answers that both kinds of completion have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from app.rest.admission import Admitted
from app.rest.answer import Answer
from app.rest.metrics import RestMetrics
from app.rest.schema import Generation
from app.rest.served import Chosen, ServedEngine, ServedModels
from app.rest.settings import RestSettings
from app.rest.sse import AnswerResponse, Format, Places
from backend.cache_identity import owner_tag, salt

FALLBACK_HEADER = b"x-shardwise-fallback"


@dataclass(frozen=True)
class RestContext:
    """The state of one endpoint."""

    models: ServedModels
    metrics: RestMetrics
    settings: RestSettings
    places: Places
    version: str
    cache_secret: bytes = field(default=b"", repr=False)

    def respond(
        self,
        body: Generation,
        choices: int,
        prefix: str,
        admit: Callable[[ServedEngine, str], Awaitable[Admitted]],
        shape: Callable[..., Format],
        logprobs: bool,
        client: str,
    ) -> AnswerResponse:
        """The answer to a completion of either kind; `client` is the id of its API key, empty where it has none.

        Raises:
            ModelNotFoundError: no such model.
            ApiError: too much is running.
        """
        chosen = self.models.choose(body.model)
        name, served = chosen.name, chosen.served
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
            admitted = await admit(served, request_id)
            return Answer(admitted.of_client(*self._cache_identity(client)), served, metrics)

        return AnswerResponse(
            start,
            format_,
            stream=bool(body.stream),
            places=self.places,
            count=choices,
            headers=_stand_in_headers(chosen),
        )

    def _cache_identity(self, client: str) -> tuple[bytes, bytes]:
        """Salt and owner of a client's cached pages; those of clients without a key are nobody's."""
        return salt(self.cache_secret, client), owner_tag(self.cache_secret, client) if client else b""


def _stand_in_headers(chosen: Chosen) -> tuple[tuple[bytes, bytes], ...]:
    """Tells the client that another model than the one it asked for answers."""
    asked = chosen.stands_in_for
    # A folder's name may hold what no header may.
    return () if asked is None else ((FALLBACK_HEADER, quote(asked, safe="/@:+ ").encode()),)
