"""divide: one rank's part of a model, from finding what can be cut to the modules that talk to the other ranks.

Nothing is believed because of a model's name: the cut model runs once more on the same numbers, and a module that hands
over anything but its part of what the whole one did has the model refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from backend.errors import UnsupportedModelError
from backend.parallel.division import MULTIPLE, Division, divide
from backend.parallel.group import Group
from backend.surgery.batched_experts import BatchedExperts, adds_up, batched_experts, columns_of
from backend.surgery.build import build
from backend.surgery.cut import check_same, cut_model, replace_parameters, zeros_elsewhere
from backend.surgery.cuts import Cut, Cuts, find_cuts
from backend.surgery.divided import DividedRMSNorm, add_up, divide_vocabulary
from backend.surgery.expert_shares import are_experts, narrow_experts
from backend.surgery.flow import FlowModel
from backend.surgery.norm import rms_norm
from backend.surgery.own_experts import adopt_experts
from backend.surgery.trace import Traced


@dataclass(frozen=True)
class Divided:
    """How one rank's part of a model was made; loading and the steps after it need it.

    Attributes:
        traced: what tracing the part would find.
        tensors: by the names of the checkpoint: which part of each is this rank's.
        zeros: tensors of which this rank keeps zeros, as another one adds them.
    """

    traced: Traced
    cuts: Cuts
    tensors: Mapping[str, Cut]
    zeros: frozenset[str]
    vocabulary: tuple[range, ...]
    group: Group


def divide_model(
    model: PreTrainedModel, config: PreTrainedConfig, traced: Traced, division: Division, group: Group
) -> Divided:
    """Cuts a model on meta down to this rank's part, in place, before surgery.

    Raises:
        UnsupportedModelError: a model that cannot be divided into so many parts, with the reason.
    """
    cuts = checked_cuts(config, traced, division)
    parts = _vocabulary(model, division)
    tensors = cuts.tensors | _vocabulary_cuts(model, parts, division.rank) | _divide_experts(model, division, group)
    widths = {name: module.weight.shape[0] for name, module in _cut_norms(model, cuts)}
    tensors |= {f"{path}.{name}": cut for path, own in cuts.batched.items() for name, cut in own.items()}
    own = cut_model(model, traced, cuts)
    replace_parameters(model, {name: cut for name, cut in tensors.items() if name not in cuts.tensors})
    for path in cuts.batched:
        model.set_submodule(path, BatchedExperts(model.get_submodule(path), group))
    for name, width in widths.items():
        norm = rms_norm(model.get_submodule(name))
        if norm is not None and norm.weight.shape[0] < width:
            model.set_submodule(name, DividedRMSNorm(norm, width, cuts.holders.get(f"{name}.weight", 1), group))
    return Divided(own, cuts, tensors, zeros_elsewhere(cuts, division.rank), parts, group)


def finish_division(model: nn.Module, divided: Divided) -> None:
    """After weights are in place: connects the parts to those of the other ranks."""
    add_up(model, frozenset(divided.cuts.summed), divided.group)
    if divided.vocabulary:
        divide_vocabulary(model, divided.vocabulary, divided.group)


def checked_cuts(config: PreTrainedConfig, traced: Traced, division: Division) -> Cuts:
    """The cuts for one rank, tried out on a model of its own."""
    try:
        flow = FlowModel(build(deepcopy(config), torch.float32), traced)
        batched = {path: columns_of(module, division) for path, module in _batched(flow.model)}
        whole = flow.run()
        cuts = find_cuts(whole, traced, division)
        cuts.batched = batched
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise _undividable(config, division, f"its forward pass cannot be followed ({_line(error)})") from error
    try:
        cut_model(flow.model, traced, cuts)
        flow.kept.update(cuts.outputs)
        wrong = check_same(whole, flow.run(), cuts)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise _undividable(
            config, division, f"its layers do not work on a part of their heads ({_line(error)})"
        ) from error
    if wrong:
        raise _undividable(config, division, f"{wrong[0]} computes something else on a part of its heads or columns")
    return cuts


def _batched(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """Experts that compute every token, in modules of a flow's model that only add them up."""
    found: list[tuple[str, Any]] = []
    for path, module in model.named_modules():
        if batched_experts(module):
            around = model.get_submodule(path.rpartition(".")[0])
            if adds_up(around, module, module.gate_up_proj.shape[1]):  # pyright: ignore
                found.append((path, module))
    return found


def _undividable(config: PreTrainedConfig, division: Division, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Models of type {config.model_type} are not divided over {division.size} ranks yet.",
        f"What stands in the way: {why}.",
        "Use --tp 1.",
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _cut_norms(model: nn.Module, cuts: Cuts) -> list[tuple[str, Any]]:
    names = {name.rpartition(".")[0] for name in cuts.tensors if name.endswith(".weight")}
    modules = {name: model.get_submodule(name) for name in names}
    return [(name, module) for name, module in modules.items() if rms_norm(module) is not None]


def _divide_experts(model: nn.Module, division: Division, group: Group) -> dict[str, Cut]:
    """Tells every experts module its share; the cuts that make it."""
    cuts: dict[str, Cut] = {}
    module: Any
    for path, module in model.named_modules():
        if are_experts(module) or adopt_experts(module):
            slices = narrow_experts(module, division, group)
            module.share = slices.share
            cuts |= {f"{path}.{name}": Cut(dim, index) for name, (dim, index) in slices.kept.items()}
    return cuts


def _vocabulary(model: Any, division: Division) -> tuple[range, ...]:
    """Each rank's rows of the output layer; none where that is no plain linear layer."""
    output = model.get_output_embeddings()
    if type(output) is not nn.Linear or output.out_features < 2 * division.size:
        return ()
    return divide(output.out_features, division.mlp, MULTIPLE)


def _vocabulary_cuts(model: Any, parts: tuple[range, ...], rank: int) -> dict[str, Cut]:
    if not parts:
        return {}
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    cut = Cut(0, torch.arange(parts[rank].start, parts[rank].stop))
    named = {module: name for name, module in model.named_modules()}
    cuts = {f"{named[output]}.weight": cut, f"{named[output]}.bias": cut}
    if isinstance(table, nn.Embedding) and table.num_embeddings == output.out_features:
        cuts[f"{named[table]}.weight"] = cut
    return cuts
