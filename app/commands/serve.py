"""`shardwise serve`: its options and what happens before the server runs. The server's life is `app.serve`'s."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.settings import ServerSettings, describe, load_settings, option_of


def _option(name: str, metavar: str | None = None, hidden: bool = False) -> Any:
    """The option of a setting. None means not given: then the environment, the file and the default decide."""
    default = ServerSettings.model_fields[name].default
    shown = "auto" if default is None else "none" if default in ((), "") else default
    return typer.Option(
        option_of(name),
        help=f"{describe(name)} [default: {shown}]",
        metavar=metavar,
        show_default=False,
        hidden=hidden,
    )


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="starter, org/name[@revision], a folder, or a .gguf file.")
    ],
    host: Annotated[str | None, _option("host", "ADDRESS")] = None,
    port: Annotated[str | None, _option("port", "PORT")] = None,
    device: Annotated[str | None, _option("device", "auto|cuda|cpu")] = None,
    dtype: Annotated[str | None, _option("dtype", "auto|float32|bfloat16|float16")] = None,
    tp: Annotated[str | None, _option("tp", "auto|COUNT")] = None,
    experts: Annotated[str | None, _option("experts", "auto|tensor|expert")] = None,
    pp: Annotated[str | None, _option("pp", "auto|COUNT")] = None,
    layers: Annotated[str | None, _option("layers", "auto|COUNT,...")] = None,
    peers: Annotated[str | None, _option("peers", "auto|none")] = None,
    replicas: Annotated[str | None, _option("replicas", "auto|COUNT")] = None,
    weights: Annotated[str | None, _option("weights", "auto|model|int8|nf4|fp8")] = None,
    kv_format: Annotated[str | None, _option("kv_format", "model|fp8|int8|k=F,v=F|auto")] = None,
    max_context: Annotated[str | None, _option("max_context", "auto|TOKENS")] = None,
    max_sequences: Annotated[str | None, _option("max_sequences", "auto|COUNT")] = None,
    kv_pool: Annotated[str | None, _option("kv_pool", "auto|SIZE")] = None,
    host_cache: Annotated[str | None, _option("host_cache", "auto|SIZE")] = None,
    host_weights: Annotated[str | None, _option("host_weights", "auto|0|SIZE")] = None,
    disk_cache: Annotated[str | None, _option("disk_cache", "SIZE")] = None,
    cache_dir: Annotated[str | None, _option("cache_dir", "auto|FOLDER")] = None,
    step_tokens: Annotated[str | None, _option("step_tokens", "auto|TOKENS")] = None,
    threads: Annotated[str | None, _option("threads", "auto|COUNT")] = None,
    collectives: Annotated[str | None, _option("collectives", "NAME,...")] = None,
    collective_timeout: Annotated[str | None, _option("collective_timeout", "SECONDS")] = None,
    drain_timeout: Annotated[str | None, _option("drain_timeout", "SECONDS")] = None,
    allowed_hosts: Annotated[str | None, _option("allowed_hosts", "NAME,...")] = None,
    allowed_origins: Annotated[str | None, _option("allowed_origins", "URL,...")] = None,
    require_key: Annotated[
        bool | None, typer.Option("--require-key", help=describe("require_key"), show_default=False)
    ] = None,
    disaggregate: Annotated[
        bool | None, typer.Option("--disaggregate", help=describe("disaggregate"), show_default=False)
    ] = None,
    fallback: Annotated[str | None, _option("fallback", "MODEL")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print how it would be served, and stop.")] = False,
) -> None:
    """Serve a model over HTTP, in the foreground.

    Each option is also a setting: SHARDWISE_PORT=9000 in the environment, or port = 9000 in settings.toml.
    """
    options = dict(locals())
    model, explain = options.pop("model"), options.pop("explain")
    settings = load_settings(**options)
    from app.compose import explain_plan, serve_model

    if explain:
        typer.echo(explain_plan(model, settings))
    else:
        raise typer.Exit(serve_model(model, settings))
