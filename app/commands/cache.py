"""`shardwise cache`: what lies in the page folder, and clearing it. Doing it is `kvcache.tiers.folder`'s.

A server that runs on the folder goes on: a record that vanished is a miss.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.progress import megabytes
from app.text_safety import clean_line
from backend.errors import ShardwiseError

cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Folder = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="FOLDER", help="The page folder; that of the settings by default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class CacheCommandError(ShardwiseError):
    """The page folder cannot be used."""

    code = "cache_folder"
    exit_status = 2


@cache.callback()
def described() -> None:
    """Cached pages on disk (`serve --disk-cache`). No server is needed."""


@cache.command("list")
def list_pages(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """List the models whose pages are cached."""
    rows = [
        {"model": one.model, "id": one.namespace.hex()[:12], "pages": one.pages, "bytes": one.bytes, "used": one.newest}
        for one in _usage(_chosen(folder))
    ]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        print(_nothing(_chosen(folder)), file=sys.stderr)
        return
    # A model has several lines where it was served in several ways (types, formats, versions).
    width = max(len(_name(row["model"])) for row in rows)
    for row in rows:
        used = datetime.fromtimestamp(row["used"]).astimezone()
        print(
            f"{_name(row['model']):<{width}}  {row['id'] or '-':<12}  {row['pages']:>9,} pages"
            f"  {megabytes(row['bytes']):>10}  {used:%Y-%m-%d %H:%M}"
        )


@cache.command()
def size(*, folder: Folder = None, as_json: AsJson = False) -> None:
    """Show how much disk space the pages take, and the budget of the settings."""
    chosen = _chosen(folder)
    usage, budget = _usage(chosen), _budget()
    pages, used = sum(one.pages for one in usage), sum(one.bytes for one in usage)
    if as_json:
        _print_json({"folder": str(chosen), "pages": pages, "bytes": used, "budget": budget or None})
    elif not chosen.exists():
        print(_nothing(chosen), file=sys.stderr)
    else:
        of = f" of {megabytes(budget)}" if budget else ""
        print(f"{megabytes(used)}{of} in {pages:,} pages, in {chosen}")


@cache.command()
def clear(
    *,
    model: Annotated[str | None, typer.Option(help="Only this model's pages.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Remove cached pages; a running server goes on, and computes them again."""
    chosen = _chosen(folder)
    found = [one for one in _usage(chosen) if model is None or one.model == model]
    if not found:
        if model is not None:
            raise CacheCommandError(
                f"There are no cached pages of {model}", f"{chosen} has none.", "See `shardwise cache list`."
            )
        print(_nothing(chosen), file=sys.stderr)
        return
    pages, used = sum(one.pages for one in found), sum(one.bytes for one in found)
    if not yes and not typer.confirm(f"Remove {pages:,} pages ({megabytes(used)}) from {chosen}?", err=True):
        raise typer.Exit(1)
    removed, freed = _clear(chosen, [None] if model is None else [one.namespace for one in found])
    if as_json:
        _print_json({"pages": removed, "bytes": freed})
    else:
        print(f"Removed {removed:,} pages, {megabytes(freed)}")


def _clear(folder: Path, namespaces: list[bytes | None]) -> tuple[int, int]:
    from kvcache.tiers.folder import clear as clear_folder

    results = [clear_folder(folder, namespace) for namespace in namespaces]
    return sum(one.pages for one in results), sum(one.bytes for one in results)


def _usage(folder: Path) -> tuple[Any, ...]:
    from kvcache.tiers.folder import disk_usage
    from kvcache.tiers.record_folder import CacheFolderError

    try:
        return disk_usage(folder)
    except CacheFolderError as error:
        raise CacheCommandError(error.what, error.why, error.hint) from None
    except OSError as error:
        raise CacheCommandError(f"The page folder {folder} cannot be read", f"{error.strerror}.") from None


def _chosen(folder: Path | None) -> Path:
    from app.settings import load_settings

    return folder.expanduser().absolute() if folder is not None else load_settings().page_folder()


def _budget() -> int:
    from app.settings import load_settings

    return load_settings().disk_cache


def _nothing(folder: Path) -> str:
    where = "is empty" if folder.exists() else "is not there"
    return f"No pages are cached: {folder} {where}. `shardwise serve MODEL --disk-cache 10GiB` keeps pages on disk."


def _name(model: str) -> str:
    return clean_line(model) or "(unknown)"


def _print_json(value: object) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())
