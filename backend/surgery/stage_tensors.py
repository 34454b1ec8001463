"""stage_tensors: which tensors of a model's files one stage reads, by headers and config; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.library.gguf_header import read_gguf_header
from backend.library.header import TensorEntry
from backend.library.safetensors_header import read_safetensors_header
from backend.surgery.build import build
from backend.surgery.choosers import idle
from backend.surgery.describe import trace_model
from backend.surgery.gguf_weights import stage_gguf
from backend.surgery.load import read_config
from backend.surgery.safetensors_weights import stage_safetensors
from backend.surgery.stage_cut import cut_stage
from backend.surgery.stage_gates import Gates
from backend.surgery.stage_probe import probe_stage


def stage_tensors(files: ModelFiles, span: LayerSpan) -> Mapping[str, tuple[TensorEntry, ...]]:
    """The tensors that all ranks of the stage together read: by the file's path, in the order of its offsets.

    Raises:
        UnsupportedModelError: a model that is not served, or not in stages.
        BrokenModelError: files that do not fit their config.
        ValueError: a span that the model does not have.
    """
    config = read_config(files)
    traced = trace_model(config)[1]
    cut = probe_stage(config, traced, span)
    model = build(config, torch.float32)
    idle(model, traced.choosers)
    packed = files.format == "gguf"
    read = stage_gguf(model, files) if packed else stage_safetensors(model, files, traced.choosers)
    wanted = read(cut_stage(model, cut, Gates()))
    return {path: tuple(one for one in _entries(path, packed) if one.name in wanted) for path in files.weights}


def _entries(path: str, packed: bool) -> tuple[TensorEntry, ...]:
    return read_gguf_header(Path(path)).tensors if packed else read_safetensors_header(Path(path))
