"""KnownModels of the catalogue and questions about them, for tests of plans."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from backend.engine_settings import EngineSettings
from backend.hardware.cluster import Cluster
from backend.hardware.machine import Machine
from backend.library.files import ModelFiles
from backend.library.model_table import known_from_catalogue
from backend.planner.fit.known_model import KnownModel

FILES = ModelFiles(name="model", format="safetensors", weights=(), folder="", bytes=0)
NAMES = {
    "8b": "meta-llama/Meta-Llama-3.1-8B",
    "70b": "meta-llama/Meta-Llama-3.1-70B",
    "405b": "meta-llama/Meta-Llama-3.1-405B",
    "gemma": "google/gemma-3-27b-it",
    "gpt-oss": "openai/gpt-oss-20b",
    "30b-a3b": "Qwen/Qwen3-30B-A3B",
    "deepseek": "deepseek-ai/DeepSeek-V3",
    "hybrid": "Qwen/Qwen3.5-27B",
}
_WORDS = {
    "--device": "device",
    "--tp": "tensor_parallel",
    "--pp": "pipeline_stages",
    "--experts": "experts",
    "--weights": "weights",
    "--kv-format": "kv_format",
    "--host-weights": "host_weights",
    "--max-context": "max_context",
    "--max-sequences": "max_sequences",
    "--kv-pool": "kv_pool",
}


def known(name: str) -> KnownModel:
    """By the short names above, or the catalogue's."""
    found = known_from_catalogue(NAMES.get(name, name))
    assert found is not None, name
    return found


def cluster(*machines: Machine) -> Cluster:
    return Cluster(machines, "test")


def settings_of(options: tuple[str, ...]) -> EngineSettings:
    """What a plan's options say, as the command line reads them."""
    fields: dict[str, Any] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        fields[_WORDS[option]] = None if value == "auto" else int(value) if value.isdigit() else value
    return replace(EngineSettings(files=FILES), **fields)
