"""Errors as clients see them: OpenAI's shape and status codes, for every way a request can fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from backend.errors import ContextOverflowError, EngineUnavailableError, ModelNotFoundError, ShardwiseError

log = structlog.get_logger("shardwise.rest")
_STATUS_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
_SHOWN_PROBLEMS = 3
_UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "TextPart"})


class ApiError(ShardwiseError):
    """A request that is refused.

    Args:
        status: HTTP status.
        code: OpenAI's code word.
        param: the field at fault.
    """

    def __init__(
        self, what: str, *, status: int = 400, code: str | None = None, param: str | None = None, why: str = ""
    ) -> None:
        super().__init__(what, why)
        self.status, self.error_code, self.param = status, code, param


def error_body(message: str, status: int, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = _STATUS_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def described(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell a client of an error; our own bugs are named, not explained."""
    if isinstance(error, ApiError):
        return error.status, error_body(str(error), error.status, code=error.error_code, param=error.param)
    if isinstance(error, ContextOverflowError):
        return 400, error_body(str(error), 400, code=error.code)
    if isinstance(error, EngineUnavailableError):
        return 503, error_body(str(error), 503, code=error.code)
    if isinstance(error, ModelNotFoundError):
        return 404, error_body(str(error), 404, code=error.code, param="model")
    if isinstance(error, ShardwiseError):
        return 400, error_body(str(error), 400, code=error.code)
    return 500, error_body("The server failed at this request. Its log has the cause.", 500, code="internal_error")


def log_failure(error: Exception, path: str) -> None:
    """Logs where a bug struck: the type and the place, never the message, which may quote a prompt."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    log.error("request failed", path=path, error=type(error).__name__, trace=places[-12:])


def error_response(error: Exception, headers: dict[str, str] | None = None) -> Response:
    status, body = described(error)
    if status in (429, 503):
        headers = {"Retry-After": "1", **(headers or {})}
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Makes the application answer in OpenAI's shape whatever is raised."""

    async def refused(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def invalid(request: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        message, param = _explained(problems)
        return error_response(ApiError(message, param=param, code=_code(problems)))

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return error_response(error)
        message = {
            404: "No such path. The endpoint's paths are listed at /openapi.json.",
            405: f"This path does not take {request.method}.",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers) if error.headers else None
        return error_response(ApiError(message, status=error.status_code), headers)

    async def failed(request: Request, error: Exception) -> Response:
        log_failure(error, request.scope.get("path", ""))
        return error_response(error)

    app.add_exception_handler(ShardwiseError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)


def _explained(problems: Sequence[Any]) -> tuple[str, str | None]:
    """One line a problem, of the first few; and the first one's field."""
    lines: list[str] = []
    first: str | None = None
    for problem in problems[:_SHOWN_PROBLEMS]:
        field = _field(problem)
        first = first or field or None
        lines.append(_sentence(problem, field))
    return "\n".join(dict.fromkeys(lines)) or "The request is not valid.", first


def _field(problem: Any) -> str:
    """The field's path, `messages.0.content`, without the names that pydantic gives to the members of a union."""
    where = [str(part)[:64] for part in problem["loc"] if part not in ("body", "query", "path")]
    unknown = where[-1:] if problem["type"] == "extra_forbidden" else []
    known = where[: len(where) - len(unknown)]
    kept = [part for part in known if (part.isidentifier() or part.isdigit()) and part not in _UNION_MEMBERS]
    return ".".join(kept + unknown)


def _sentence(problem: Any, field: str) -> str:
    kind, message = problem["type"], str(problem["msg"]).removeprefix("Value error, ")[:500]
    if kind == "extra_forbidden":
        return f"Unknown field: {field}"
    if kind == "missing":
        return f"Missing field: {field}" if field else "The request has no body."
    if kind == "json_invalid":
        return "The body is not valid JSON."
    return f"{field}: {message}" if field else message


def _code(problems: Sequence[Any]) -> str | None:
    kinds = {problem["type"] for problem in problems}
    return "unknown_field" if "extra_forbidden" in kinds else "invalid_value" if kinds else None
