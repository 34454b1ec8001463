"""ServerSettings: every option of `serve`, from the command line, the environment and a file, in this order.

It is the one place that reads settings from the environment. What a value means for the engine is `planner`'s.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from backend.engine_settings import EngineSettings
from backend.errors import SettingError, ShardwiseError
from backend.library.files import ModelFiles
from backend.sizes import parse_size
from quant.kv_format import parse_kv_formats


def settings_file() -> Path:
    """Where settings may stand, as `name = value` lines of TOML."""
    return platformdirs.user_config_path("shardwise") / "settings.toml"


def default_page_folder() -> Path:
    """Where pages on disk lie unless cache_dir says otherwise."""
    return platformdirs.user_cache_path("shardwise") / "pages"


def _auto(value: Any) -> Any:
    """ "auto" is None: decided later, from the machine and the model."""
    return None if value == "auto" else value


def _size(value: Any) -> Any:
    """Sizes with units; the refusal of a broken one is pydantic's to collect, so it has to be a ValueError."""
    if not isinstance(value, str) or value == "auto":
        return _auto(value)
    try:
        return parse_size(value)
    except SettingError as error:
        raise ValueError(error.why) from error


def _names(value: Any) -> Any:
    """Several names in one string, as an environment variable has them."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _counts(value: Any) -> Any:
    """Several counts in one string; "auto" is none at all."""
    return () if value == "auto" else _names(value)


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], NoDecode, BeforeValidator(_counts)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
AutoCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_auto)]


def _tier_size(value: Any) -> Any:
    """A size that may be 0, for none of it."""
    return 0 if value in ("0", 0) else _size(value)


def _formats(value: Any) -> Any:
    """Refuses what is no format of keys and values."""
    if value != "auto":
        parse_kv_formats(str(value))
    return value


AutoSize = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_size)]
AutoTierSize = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_tier_size)]
TierSize = Annotated[int, Field(ge=0), BeforeValidator(_tier_size)]
FolderPath = Annotated[Path | None, BeforeValidator(_auto)]


class ServerSettings(BaseSettings):
    """Read with `load_settings`, which turns what is wrong into SettingErrors."""

    model_config = SettingsConfigDict(env_prefix="SHARDWISE_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback a key is required.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where to compute.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and activations; auto is bfloat16 where the device is fast at it."
    )
    tp: AutoCount = Field(
        None,
        description="GPUs that share each layer (tensor parallelism), or processes on a CPU; auto takes as many GPUs "
        "as answer fastest, and one process.",
    )
    pp: AutoCount = Field(
        None,
        description="Stages that the layers are spread over, on machines that have joined, groups of GPUs or processes "
        "on a CPU; auto takes one where the model fits this machine, else as few as hold it.",
    )
    layers: Counts = Field(
        (), description="Layers of each stage, such as 20,12, in the order of machines; auto leaves it to --pp."
    )
    peers: Literal["auto", "none"] = Field(
        "auto", description="Whether stages may be on machines that have joined this one: auto or none."
    )
    replicas: AutoCount = Field(
        1,
        description="Copies of the model that share requests: one here and one on each machine that has joined, then "
        "several here, each on GPUs of its own. auto makes as many as there are machines and groups of --tp GPUs.",
    )
    weights: Literal["auto", "model", "int8", "nf4", "fp8"] = Field(
        "model",
        description="How weights are stored: model is the dtype, int8 and fp8 (newer GPUs) take half of bfloat16's "
        "bytes, nf4 little more than a quarter; auto takes the first of model, int8 and nf4 that fits.",
    )
    kv_format: Annotated[str, BeforeValidator(_formats)] = Field(
        "model",
        description="How keys and values are stored: model is the dtype, fp8 and int8 take half of bfloat16's bytes, "
        "k=FORMAT,v=FORMAT chooses apart, auto takes the smallest that keeps this model's answers.",
    )
    max_context: AutoCount = Field(None, description="Most tokens of one chat, prompt and answer together.")
    max_sequences: AutoCount = Field(None, description="Most requests that are computed at the same time.")
    kv_pool: AutoSize = Field(None, description="Memory for keys and values over all GPUs, such as 4GiB.")
    host_cache: AutoTierSize = Field(
        None, description="Host memory for pages that left the pool, such as 16GiB; 0 for none of it."
    )
    host_weights: AutoTierSize = Field(
        0,
        description="Host memory for layers that the GPUs have no room for, such as 20GiB: every step copies them, "
        "which is slow; auto takes what the model needs, 0 is none.",
    )
    disk_cache: TierSize = Field(
        0, description="Disk space for pages, which outlive the server there, such as 100GiB; 0 for none of it."
    )
    cache_dir: FolderPath = Field(
        None, description="Folder of the pages on disk; auto is one in this user's cache folder."
    )
    step_tokens: AutoCount = Field(None, description="Most tokens computed in one step.")
    threads: AutoCount = Field(None, description="Processor threads for computing on a CPU.")
    require_key: bool = Field(False, description="Refuse requests without an API key, on loopback too.")
    allowed_hosts: Names = Field((), description="Further names by which clients may reach this server.")
    allowed_origins: Names = Field((), description="Web origins (https://host) whose pages may call this server.")
    drain_timeout: float = Field(
        60.0, ge=0, le=86400, description="Seconds that running answers get to finish when the server stops."
    )
    experts: Literal["auto", "tensor", "expert"] = Field(
        "auto",
        description="What each GPU has of a mixture model's experts: tensor is a slice of each, expert is whole ones, "
        "auto takes slices as long as they are wide enough.",
    )
    collectives: Names = Field(
        (),
        description="By what means GPUs add up, such as nccl or host; all that work are tried unless some are named.",
    )
    collective_timeout: float = Field(
        60.0, ge=1, le=3600, description="Seconds that a GPU waits for the others before the engine starts again."
    )
    disaggregate: bool = Field(
        False,
        description="Compute prompts in one engine and answers in another, each with half of the GPUs or threads: "
        "a long prompt then lengthens no pause between others' tokens. It makes nothing faster by itself.",
    )
    fallback: str | None = Field(
        None,
        description="A smaller model that answers new requests while the main one is away; it starts when that is "
        "ready, with 512 MiB for keys and values.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, toml_file=settings_file())
        return init_settings, env_settings, file

    def page_folder(self) -> Path:
        """Where pages on disk lie."""
        return self.cache_dir.expanduser().absolute() if self.cache_dir else default_page_folder()

    def engine(self, files: ModelFiles, cache_secret: bytes = b"", hub: str = "") -> EngineSettings:
        """What the engine that serves `files` has to know; `cache_secret` is the installation's.

        hub: path of the hub's socket; empty where none runs.
        """
        return EngineSettings(
            files=files,
            device=self.device,
            dtype=self.dtype,
            weights=self.weights,
            kv_format=self.kv_format,
            max_context=self.max_context,
            max_sequences=self.max_sequences,
            kv_pool=self.kv_pool,
            host_cache=self.host_cache,
            host_weights=self.host_weights,
            disk_cache=self.disk_cache,
            cache_dir=str(self.page_folder()) if self.disk_cache else "",
            cache_secret=cache_secret,
            step_tokens=self.step_tokens,
            threads=self.threads,
            tensor_parallel=self.tp,
            experts=self.experts,
            collectives=self.collectives,
            collective_timeout=self.collective_timeout,
            pipeline_stages=self.pp,
            stage_layers=self.layers,
            peers=hub if self.peers == "auto" else "",
        )


def load_settings(**options: Any) -> ServerSettings:
    """The settings in force; `options` are the command line's, None where an option was not given.

    Raises:
        SettingError: for a value that is malformed, out of range or not available in this version, an unknown name
            in the file, or a file that is no TOML.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = ServerSettings(**given)
    except ValidationError as error:
        raise _refusal(error) from None
    except ShardwiseError:
        raise
    except (ValueError, OSError) as error:
        raise SettingError("The settings file cannot be read", f"{settings_file()}: {error}.") from None
    return settings


def option_of(name: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + name.replace("_", "-")


def describe(name: str) -> str:
    """The sentence that says what a setting does."""
    return ServerSettings.model_fields[name].description or ""


def _refusal(error: ValidationError) -> SettingError:
    """The first of pydantic's complaints, in our words."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return SettingError(
            f"There is no setting named {name}", f"It stands in {settings_file()}.", "See shardwise serve --help."
        )
    return SettingError(
        f"{option_of(name)} cannot be {first['input']!r}",
        first["msg"].removeprefix("Value error, ").rstrip(".") + ".",
        f"{describe(name)} It may also come from SHARDWISE_{name.upper()} or {settings_file()}.",
    )


def client_key() -> str | None:
    """The API key that our own clients (terminal app, chat) send, from SHARDWISE_API_KEY; None where it is not set."""
    return os.environ.get("SHARDWISE_API_KEY") or None
