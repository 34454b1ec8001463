"""The optional extra `peers`: whether Ray and cryptography are installed, and what to say where they are not."""

from __future__ import annotations

from importlib.util import find_spec

from backend.errors import ShardwiseError

INSTALL = 'pip install "shardwise[peers]"'
_MODULES = ("ray", "cryptography")


class MissingExtraError(ShardwiseError):
    """Something of the extra `peers` is not installed."""

    code = "missing_extra"
    exit_status = 2


def missing_modules() -> tuple[str, ...]:
    """What of the extra is not installed; nothing is imported for it."""
    return tuple(name for name in _MODULES if find_spec(name) is None)


def require_extra() -> None:
    """Raises MissingExtraError where the extra is not whole."""
    if missing := missing_modules():
        raise MissingExtraError(
            "Peers need packages that are not installed",
            f"{' and '.join(missing)} cannot be imported by this Python.",
            f"Install them on every machine: {INSTALL}",
        )
