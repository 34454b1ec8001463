"""`shardwise keys`: makes, lists and revokes API keys. Storing and checking them is `app.keys`'."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from app.keys import default_key_store
from backend.errors import ShardwiseError

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
Name = Annotated[str, typer.Argument(help="What the key is called: a person, a program or a machine.")]


@keys.callback()
def described() -> None:
    """API keys. Once one exists, servers on this machine ask every request for a key."""


@keys.command()
def create(name: Name) -> None:
    """Make a key and show it, this once: only a hash of it is kept."""
    key = default_key_store().create(name)
    typer.echo(key)
    typer.echo(
        "Keep it: it is not shown again. Clients send it as `Authorization: Bearer KEY`, or read it from "
        "SHARDWISE_API_KEY or OPENAI_API_KEY.",
        err=True,
    )


@keys.command("list")
def list_keys() -> None:
    """Show the names of the keys and when they were made."""
    records = default_key_store().list()
    if not records:
        typer.echo("There are no keys. `shardwise keys create NAME` makes one.", err=True)
    for record in records:
        made = datetime.fromtimestamp(record.created).astimezone()
        typer.echo(f"{record.name}\t{made:%Y-%m-%d %H:%M}")


@keys.command()
def revoke(name: Name) -> None:
    """Remove a key and its cached pages on disk; running servers refuse it from the next request on."""
    revoked = default_key_store().revoke(name)
    typer.echo(f"Revoked {name}", err=True)
    if pages := _forget_pages(revoked.id):
        typer.echo(f"Removed {pages:,} cached pages of it from the disk", err=True)


def _forget_pages(key_id: str) -> int:
    """Removes what the key's requests left in the page folders: how many pages. Says so where it cannot."""
    from app.secret import installation_secret
    from app.settings import default_page_folder, load_settings
    from backend.cache_identity import owner_tag
    from kvcache.tiers.folder import clear
    from kvcache.tiers.record_folder import CacheFolderError

    pages = 0
    try:
        folders = [each for each in {default_page_folder(), load_settings().page_folder()} if each.exists()]
        for folder in folders:
            pages += clear(folder, owner=owner_tag(installation_secret(), key_id)).pages
    except (ShardwiseError, CacheFolderError, OSError) as error:
        typer.echo(f"Its cached pages on disk could not be removed: {error}", err=True)
    return pages
