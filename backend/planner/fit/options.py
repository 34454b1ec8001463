"""options: what `shardwise serve MODEL` takes to make a plan. Pure."""

from __future__ import annotations

from backend.engine_settings import EngineSettings


def serve_options(settings: EngineSettings) -> tuple[str, ...]:
    """As words of a command line; those that are as `serve` has them by itself are left out."""
    host = settings.host_weights
    pairs: tuple[tuple[str, str | int | None], ...] = (
        ("--device", None if settings.device == "auto" else settings.device),
        ("--tp", settings.tensor_parallel),
        ("--pp", settings.pipeline_stages),
        ("--experts", None if settings.experts == "auto" else settings.experts),
        ("--weights", None if settings.weights == "model" else settings.weights),
        ("--kv-format", None if settings.kv_format == "model" else settings.kv_format),
        ("--host-weights", "auto" if host is None else host or None),
        ("--max-context", settings.max_context),
        ("--max-sequences", settings.max_sequences),
        ("--kv-pool", settings.kv_pool),
    )
    return tuple(word for option, value in pairs if value is not None for word in (option, str(value)))
