"""EngineSettings: what a person asked of one engine, every "auto" still open; `planner.decide` makes a Plan of it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from backend.library.files import ModelFiles


class EngineSettings(Struct, frozen=True, kw_only=True):
    """One engine's options, as the command line or the settings file gives them. None means auto.

    Attributes:
        files: the model.
        device: where to compute.
        dtype: type of weights and activations.
        weights: weight format ("model" keeps the checkpoint's).
        kv_format: how K and V are stored: "model" (the dtype), "fp8", "int8", "k=F,v=F", or "auto".
        host_cache: bytes of host memory for cached pages; None lets the plan choose, 0 is none.
        host_weights: bytes of host memory for layers that are streamed from there; None is what is needed, 0 none.
        disk_cache: bytes of disk for cached pages; 0 is none.
        cache_dir: folder of the disk tier; must be set where disk_cache is not 0.
        cache_secret: the installation's secret, which signs pages on disk and separates API keys.
        max_context: most positions of a sequence.
        max_sequences: most sequences computed in one step.
        kv_pool: bytes of the page pool.
        step_tokens: token budget of one step.
        threads: compute threads on a CPU device, all ranks' together.
        log_file: where the engine's own output goes, beside which each rank gets a log; empty where it has none.
        tensor_parallel: ranks that share each layer.
        experts: whether each of these has a slice of every expert, or whole experts.
        collectives: by what means ranks may add up, of `parallel.open_group`'s; empty for all that work.
        collective_timeout: seconds that a rank waits for the others in one of them.
        pipeline_stages: ranges that the layers are cut into; None takes more than one only where they are needed.
        stage_layers: how many layers each of these has; empty leaves it to the plan.
        machines: ids of the peers that alone may have stages, of a copy that is not on this machine; empty for all.
        gpus: uuids of the GPUs that this engine may use; empty for all that the server may.
        role: whether the engine serves by itself, or one computes prompts and another goes on with their answers; these
            share `cache_dir`, where the first puts pages for the second.
        peers: whether stages may be on other machines, and where to ask which: the path of the hub's socket; empty
            where only this machine may be used.
    """

    files: ModelFiles
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    weights: str = "model"
    kv_format: str = "model"
    max_context: int | None = None
    max_sequences: int | None = None
    kv_pool: int | None = None
    host_cache: int | None = None
    host_weights: int | None = 0
    disk_cache: int = 0
    cache_dir: str = ""
    cache_secret: bytes = b""
    step_tokens: int | None = None
    threads: int | None = None
    log_file: str = ""
    tensor_parallel: int | None = None
    experts: Literal["auto", "tensor", "expert"] = "auto"
    collectives: tuple[str, ...] = ()
    collective_timeout: float = 60.0
    pipeline_stages: int | None = None
    stage_layers: tuple[int, ...] = ()
    machines: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    role: Literal["whole", "prefill", "decode"] = "whole"
    peers: str = ""

    def __repr__(self) -> str:
        """Without the secret: this ends up in logs and tracebacks."""
        shown = (name for name in self.__struct_fields__ if name != "cache_secret")
        return f"EngineSettings({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"
