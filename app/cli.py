"""The command line: the table of commands, loaded when used, and how errors end. What a command does is its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from backend.errors import ShardwiseError

# name: (module, its function or Typer, what it does)
COMMANDS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "serve": ("app.commands.serve", "serve", "Serve a model over HTTP, in the foreground."),
        "chat": ("app.commands.chat", "chat", "Chat in plain text, also in a pipe."),
        "fit": ("app.commands.fit", "fit", "Say what fits on which hardware, how fast, for how much."),
        "pull": ("app.commands.pull", "pull", "Download a model."),
        "models": ("app.commands.models", "models", "List the models on this machine."),
        "rm": ("app.commands.rm", "rm", "Remove a model from this machine."),
        "keys": ("app.commands.keys", "keys", "Create, list and revoke API keys."),
        "doctor": ("app.commands.doctor", "doctor", "Say what this machine can and cannot do."),
        "cache": ("app.commands.cache", "cache", "List and clear the cached pages on disk."),
        "bench": ("app.commands.bench", "bench", "Put load on a running server and measure it."),
        "peers": ("app.commands.peers", "peers", "Add machines to this one, list and remove them."),
        "stop": ("app.commands.stop", "stop", "Stop the server that runs in the background."),
    }
)


# The shell's convention for a program that Ctrl+C ended.
INTERRUPTED = 130


class LazyCommand(TyperCommand):
    """Stands for a command until it runs or shows its help: only then its module is imported."""

    def __init__(self, name: str) -> None:
        self._module, self._attribute, summary = COMMANDS[name]
        super().__init__(name, help=summary, rich_markup_mode=None)

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        target = getattr(import_module(self._module), self._attribute)
        return _command(target, self.name or "").make_context(info_name, args, parent, **extra)


def _command(target: typer.Typer | Callable[..., Any], name: str) -> Any:
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(rich_markup_mode=None, add_completion=False)
        target.command(name)(function)
    return typer.main.get_command(target)


class LazyGroup(TyperGroup):
    """The commands of `COMMANDS`, each a LazyCommand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: LazyCommand(name) for name in COMMANDS}


application = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shardwise {installed_version()}")
        raise typer.Exit


def installed_version() -> str:
    try:
        return version("shardwise")
    except PackageNotFoundError:
        return "(not installed)"


@application.callback(invoke_without_command=True)
def shardwise(
    context: typer.Context,
    connect: Annotated[
        str | None, typer.Option(metavar="URL", help="Use the server at this address instead of one here.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve language models on the GPUs you have. Without a command: the terminal app."""
    if context.invoked_subcommand is None:
        from app.tui.app import run

        raise typer.Exit(run(connect))
    elif connect is not None:
        raise typer.BadParameter("--connect belongs to the terminal app; commands have --url.")


@contextmanager
def ending() -> Iterator[None]:
    """A user's mistake ends the program in up to three lines and a status, never in a traceback."""
    try:
        yield
    except ShardwiseError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def main() -> None:
    """The program."""
    with ending():
        application(prog_name="shardwise")
