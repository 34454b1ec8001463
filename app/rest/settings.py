"""RestSettings: what the endpoint needs to know from the settings, as plain data. Reading them is the settings' own."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class RestSettings:
    """The endpoint's limits and doors.

    Attributes:
        loopback: whether the server is bound to loopback only; then only loopback names are valid in `Host`.
        require_key: whether a key is asked for even while none exists.
        allowed_hosts: further valid names in `Host`; with `loopback` False and none named, any is valid.
        allowed_origins: web origins (`https://host[:port]`) whose pages may call us, besides our own.
        body_bytes: the longest body of a request.
        body_seconds: the longest a request's body may take to arrive.
        json_depth, json_containers: the deepest nesting, and the most lists and objects, of a body.
        header_bytes, header_count: the most that a request's headers may be.
        answers: the most answers (n x prompts) of one request.
        output_tokens: the most tokens of one request over all of its answers.
        active_answers: the most answers that run or wait at once; more are refused with 429.
    """

    loopback: bool = True
    require_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 30.0
    json_depth: int = 64
    json_containers: int = 100_000
    header_bytes: int = 32 * 1024
    header_count: int = 100
    answers: int = 128
    output_tokens: int = 4 * 1024 * 1024
    active_answers: int = 1024
