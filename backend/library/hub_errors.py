"""Says in words what the hub's client raises: gated, private, unknown, unreachable, disk full."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import DownloadError, ModelAccessError, ModelNotFoundError, ShardwiseError
from backend.library.atomic import disk_full
from backend.library.locations import hub_cache

_TOKEN_HINT = "set HF_TOKEN, or run `hf auth login`."


def connection_error() -> type[Exception]:
    """The base class of what huggingface_hub's HTTP client raises; which client that is depends on its version."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return HTTPError


@contextmanager
def explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turns errors of huggingface_hub, and a full disk, into ours; others pass."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise _refused(error, repository, revision) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, connection_error()) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(error.__cause__, repository, revision) from error
        raise unreachable(repository, error) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(repository, hub_cache(), 0) from error
        raise DownloadError(f"{repository} could not be fetched.", str(error), "Run the command again.") from error


def _refused(error: Exception, repository: str, revision: str | None) -> ShardwiseError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return ModelAccessError(
            f"{repository} is gated.",
            "Its authors give access to those who ask for it.",
            f"Ask at {page}, then {_TOKEN_HINT}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(
            f"{repository} has no revision {revision or 'main'!r}.", hint=f"See {page}/tree/main for what there is."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"There is no repository {repository}, or it is private.",
            f"{constants.ENDPOINT} answers the same for both.",
            f"Check the name; for a private one, {_TOKEN_HINT}",
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in {401, 403}:
        return ModelAccessError(
            f"{repository} may not be read.", f"{constants.ENDPOINT} answers {status}.", f"To get access, {_TOKEN_HINT}"
        )
    return DownloadError(
        f"{repository} could not be fetched.",
        f"{constants.ENDPOINT} answers {status}.",
        "Try again in a while; what has arrived is kept.",
    )


def unreachable(repository: str, error: Exception | None) -> DownloadError:
    """The error for a hub that cannot be asked: offline mode, or no connection."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return DownloadError(
            f"{repository} is not wholly in the Hugging Face cache.",
            "HF_HUB_OFFLINE is set, so nothing is fetched.",
            "Unset it, and run the command again.",
        )
    return DownloadError(
        f"{repository} could not be fetched.",
        f"The connection to {constants.ENDPOINT} failed: {str(error) or type(error).__name__}.",
        "Check the network (or HF_ENDPOINT) and run the command again; what has arrived is kept.",
    )
