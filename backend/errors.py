"""Errors a person or a client can act on: what went wrong, why, what to do. Our own bugs stay Python's exceptions."""

from __future__ import annotations


class ShardwiseError(Exception):
    """A failure with an explanation.

    Attributes:
        what: what went wrong, one sentence.
        why: the cause, with the numbers that decide it; may be empty.
        hint: what to do about it; may be empty.
        code: a stable machine-readable word, used in REST errors and tests.
        exit_status: the status a command line ends with.
    """

    code = "error"
    exit_status = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__("\n".join(part for part in (what, why, hint) if part))
        self.what, self.why, self.hint = what, why, hint


class SettingError(ShardwiseError):
    """A setting or option has a value that cannot be obeyed."""

    code = "bad_setting"
    exit_status = 2


class ModelNotFoundError(ShardwiseError):
    """No such model: neither in the library, nor on disk, nor on the hub."""

    code = "model_not_found"


class ModelAccessError(ShardwiseError):
    """The model exists and may not be read: gated, private, or a token is missing."""

    code = "model_access"


class DownloadError(ShardwiseError):
    """A download could not be finished; what has arrived is kept."""

    code = "download_failed"


class BrokenModelError(ShardwiseError):
    """The model's files are truncated, inconsistent or incomplete."""

    code = "broken_model"


class UnsupportedModelError(ShardwiseError):
    """The model is of a kind that this version does not serve."""

    code = "unsupported_model"


class OutOfMemoryError(ShardwiseError):
    """Something does not fit; the message names the term, the numbers and two ways out."""

    code = "out_of_memory"


class ContextOverflowError(ShardwiseError):
    """Prompt plus answer would exceed the context; the message has both numbers."""

    code = "context_length_exceeded"


class EngineUnavailableError(ShardwiseError):
    """The engine is not serving: starting, restarting, draining or failed."""

    code = "engine_unavailable"
