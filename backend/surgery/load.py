"""Loads a model: builds it, operates on it, and reads its weights tensor by tensor into place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from backend.errors import BrokenModelError
from backend.layer_span import LayerSpan
from backend.library.files import ModelFiles
from backend.parallel.division import Division
from backend.parallel.group import Group
from backend.parallel.quiet_group import QuietGroup
from backend.surgery import hook
from backend.surgery.arrivals import Arrivals
from backend.surgery.build import build, materialize
from backend.surgery.choosers import idle
from backend.surgery.decoder_layers import decoder_layers
from backend.surgery.describe import own_facts, trace_model
from backend.surgery.divide import divide_model, finish_division
from backend.surgery.gguf_weights import read_gguf
from backend.surgery.handed_on import hand_on
from backend.surgery.model import ServedModel
from backend.surgery.operate import operate
from backend.surgery.places import Places
from backend.surgery.rope import RopeLengths
from backend.surgery.safetensors_weights import read_safetensors
from backend.surgery.stage import ModelStage
from backend.surgery.stage_cut import cut_stage, traced_stage
from backend.surgery.stage_gates import Gates
from backend.surgery.stage_probe import probe_stage
from backend.surgery.store import held_bytes
from backend.surgery.turns import take_turns
from quant.weight_format import WeightFormat


def read_config(files: ModelFiles) -> PreTrainedConfig:
    """The model's config. Never runs code of the model's own.

    Raises:
        BrokenModelError: no readable config, or one of an unknown type.
    """
    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BrokenModelError(
            f"The config of {files.name} cannot be read.",
            str(error).strip().splitlines()[0],
            f"Check {Path(files.folder) / 'config.json'}.",
        ) from error


@torch.no_grad()
def load_model(
    files: ModelFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[int, int], None],
    division: Division | None = None,
    group: Group | None = None,
    stored: WeightFormat | None = None,
    hosted: Sequence[int] = (),
    span: LayerSpan | None = None,
) -> ServedModel:
    """The model, ready to serve, with weights and activations in `dtype` on `device`.

    on_progress: called with the bytes read so far and all bytes, often; the last call has both equal.
    division, group: for one rank of several: its part of the model, which computes with the others' through the group;
    `facts` are then the rank's own, and logits are right on the first rank, zeros on the others.
    stored: a format other than the model's own, in which each linear is put as soon as it has been read.
    hosted: numbers of the layers (of `decoder_layers`) whose weights go to host memory: only after `stream_layers` can
    the model compute on another device.
    span: for a stage: only these layers, and what of the model around them it needs, is read and has memory; `facts`
    are then the stage's own, and attention slots are numbered within it.

    Raises:
        UnsupportedModelError: a model that this version does not serve, or not in stages.
        BrokenModelError: tensors are missing, unexpected, or of another shape than the config says.
    """
    config = read_config(files)
    facts, traced = trace_model(config)
    cut = probe_stage(config, traced, span) if span is not None else None
    model = build(config, dtype)
    layers = decoder_layers(model, [layer.name for layer in traced.layers]) if hosted else ()
    divided = None
    ranks = QuietGroup(group) if group is not None else None
    idle(model, traced.choosers)
    read = read_gguf(model, files) if files.format == "gguf" else read_safetensors(model, files, traced.choosers)
    if division is not None and ranks is not None and division.size > 1:
        divided = divide_model(model, config, traced, division, ranks)
        traced = divided.traced
        facts = own_facts(facts, traced)
    stage = names = None
    if cut is not None:
        gates = Gates()
        names = cut_stage(model, cut, gates)
        traced = traced_stage(traced, cut)
        facts = own_facts(facts, traced)
        stage = ModelStage(cut.span, cut.layers, cut.shape, gates)
        hosted = [number for number in hosted if f"{layers[number]}.".startswith(cut.inside)]
    hook.number_slots([model.get_submodule(layer.name) for layer in traced.layers])
    lengths = RopeLengths()
    regimes = operate(model, traced, lengths)
    take_turns(model, traced)
    hand_on(model, traced.unhanded, "context")
    away = {module for number in hosted for module in model.get_submodule(layers[number]).modules()}
    arrivals = Arrivals(model, stored, device, away) if stored is not None else None
    materialize(model, device, arrivals.waits if arrivals else lambda module: False, away)
    places = Places(model, files.name, arrivals, divided and divided.tensors, divided.zeros if divided else frozenset())
    read(places, on_progress, names)
    places.check_complete()
    if divided is not None:
        finish_division(model, divided)
    return ServedModel(
        module=model,
        facts=facts,
        dtype=dtype,
        device=device,
        weights_bytes=held_bytes(model),
        recompute_lengths=regimes.recompute_lengths,
        scaled_past=regimes.scaled_past,
        lengths=lengths,
        ranks=ranks,
        hosted=tuple(layers[number] for number in hosted),
        stage=stage,
    )
