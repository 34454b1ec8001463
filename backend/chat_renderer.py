"""The process that renders chat templates, so that a hostile template can be killed: `chat_template` talks to it.

Started as `python -m backend.chat_renderer`: msgpack requests on standard input, answers on standard output, each after
its length in four bytes. It imports jinja2 and little else, and gives a template no more than the data it needs.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec
from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 1 << 30


class RenderRequest(msgspec.Struct, frozen=True):
    """A template with its variables, the most characters that may come out, and the seconds it may take."""

    template: str
    variables: dict[str, Any]
    limit: int
    seconds: float


class RenderAnswer(msgspec.Struct, frozen=True):
    """The text, or why there is none."""

    text: str = ""
    error: str = ""


class _GenerationTag(Extension):
    """`{% generation %}` marks an assistant's part for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _SafeNamespace(Namespace):
    """Refuses names that begin with an underscore, as transformers does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r} in a namespace")


class _SafeDict:
    """`dict` for templates, without what a class has besides."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=8)
def compile_template(text: str) -> Template:
    """The template in transformers' environment: same options, extensions, filters and globals."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _SafeDict()
    environment.globals["namespace"] = _SafeNamespace
    return environment.from_string(text)


def render(request: RenderRequest) -> RenderAnswer:
    """Renders one request; whatever a template does wrong is an answer, not an exception."""
    parts: list[str] = []
    size = 0
    try:
        for part in compile_template(request.template).generate(request.variables):
            size += len(part)
            if size > request.limit:
                return RenderAnswer(error=f"the rendered chat is longer than {request.limit} characters")
            parts.append(part)
    except MemoryError:
        parts.clear()
        return RenderAnswer(error="the template needs too much memory")
    except Exception as error:  # noqa: BLE001 (a template may raise anything; this is its process' edge)
        return RenderAnswer(error=str(error)[:2000] or type(error).__name__)
    return RenderAnswer("".join(parts))


def _read(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve(source: BinaryIO, sink: BinaryIO, arm: Callable[[float], object]) -> None:
    """Answers requests until the other side closes. `arm` sets the clock that ends this process; 0 stops it."""
    decoder, encoder = msgspec.msgpack.Decoder(RenderRequest), msgspec.msgpack.Encoder()
    while True:
        try:
            request = decoder.decode(_read(source, int.from_bytes(_read(source, 4), "big")))
        except EOFError:
            return
        arm(request.seconds)
        answer = encoder.encode(render(request))
        arm(0)
        sink.write(len(answer).to_bytes(4, "big") + answer)
        sink.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The default action of the alarm ends the process even where the template keeps the interpreter busy, and also
    # after our parent has died.
    serve(sys.stdin.buffer, sys.stdout.buffer, lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds))


if __name__ == "__main__":
    main()
