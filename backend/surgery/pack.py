"""pack: after loading, stores each linear's weight in its format and puts fast kernels where the device has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backend.surgery.echo_context import EchoContext
from backend.surgery.glu import GluStep
from backend.surgery.linears import ServedLinear, served_linears
from backend.surgery.model import ServedModel
from backend.surgery.norm import ServedRMSNorm
from backend.surgery.store import held_bytes, store_model
from quant.weight_format import WEIGHT_FORMATS, Linear, WeightFormat

if TYPE_CHECKING:
    from quant.cpu.team import Team


class TiedEmbedding(nn.Module):
    """An embedding whose table is the output layer's weight, wherever and however that is stored."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [..., T] int64 -> [..., T, hidden]."""
        rows = self._linear.rows(tokens.reshape(-1))
        return rows.view(*tokens.shape, rows.shape[-1])


@torch.no_grad()
def pack_model(model: ServedModel, weight_format: WeightFormat, team: Team | None) -> ServedModel:
    """The same model, with its linears in `weight_format` and kernels chosen; weights that were copied are dropped.

    Linear by linear, so that no more than one weight is held twice at a time. The output layer and what chooses experts
    stay in the model's own dtype. The model must not be used while this runs, and its modules are changed in place.
    `team`: the threads that compute, on a processor.
    """
    module: Any = model.module
    output, own = module.get_output_embeddings(), WEIGHT_FORMATS["model"]
    if weight_format.name != own.name:
        store_model(model.module, weight_format)
    for _, linear in list(served_linears(model.module)):
        if linear.stored is None:
            stored = own.linear(linear.weight, linear.bias, team, exact=linear is output)
            _tie(model.module, linear, stored)
            linear.adopt(stored)
    if team is not None:
        _use_processor_kernels(model.module, team)
        with model.alone():
            _fuse_layers(model, team)
    return replace(model, weights_bytes=held_bytes(model.module))


def _tie(module: nn.Module, linear: ServedLinear, stored: Linear) -> None:
    """Embeddings over the very same parameter look their rows up in the stored weight."""
    for path, child in list(module.named_modules()):
        # A subclass may do more than look up (scale, for one): it keeps a table of its own.
        if type(child) is nn.Embedding and child.weight is linear.weight:
            module.set_submodule(path, TiedEmbedding(stored))


def _use_processor_kernels(module: nn.Module, team: Team) -> None:
    # They compile at first import, which a GPU's process need not pay for.
    from backend.surgery.processor_kernels import RowNorm, serves

    for child in module.modules():
        if isinstance(child, ServedRMSNorm) and serves(child.weight, child.weight.shape[0]):
            child.kernel = RowNorm(child.gain(), child.epsilon, team)
        if isinstance(child, GluStep):
            name = _activation_name(child.activation)
            if name is not None:
                child.kernel = _Gated(name, child, team)


def _fuse_layers(model: ServedModel, team: Team) -> None:
    """Puts a FusedStack in the place of a list of layers, if the whole model then still computes the same.

    Of a stage, in the place of its own layers: those around them, which compute nothing, keep theirs.
    """
    from backend.surgery.stack import FusedStack
    from backend.surgery.stacked_layer import stacked_layer

    tokens = torch.arange(3)
    hidden = torch.randn(3, model.columns, generator=torch.Generator().manual_seed(3)).to(model.dtype)

    def answer() -> Tensor:
        given = None if model.begins else hidden
        return model.forward(tokens, tokens, torch.full((3,), 3), tokens, EchoContext(), given).clone()

    for path, layers in list(model.module.named_modules()):
        if not isinstance(layers, nn.ModuleList) or len(layers) < 1:
            continue
        own = range(len(layers))
        if model.stage is not None and path == model.stage.layers:
            own = range(model.stage.span.first, model.stage.span.stop)
        parts = [stacked_layer(layers[number]) for number in own]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts) or len({tuple(part.widths().values()) for part in whole}) > 1:
            continue
        before = answer()
        around = [*layers[: own.start], FusedStack(whole, team), *layers[own.stop :]]
        model.module.set_submodule(path, nn.ModuleList(around))
        try:
            same = torch.equal(answer(), before)
        except (TypeError, AttributeError, IndexError, KeyError, RuntimeError):
            same = False
        if not same:
            model.module.set_submodule(path, layers)


class _Gated:
    """A GluStep's kernel: the processor's where it serves the product's width, else the step's own."""

    def __init__(self, activation: str, step: GluStep, team: Team) -> None:
        from backend.surgery.processor_kernels import GatedActivation, serves

        self.activation = activation
        self._step, self._run, self._serves = step, GatedActivation(activation, team), serves

    def __call__(self, product: Tensor) -> Tensor:
        if self._serves(product, product.shape[-1] // 2):
            return self._run(product)
        return self._step.combine(product)


def _activation_name(activation: nn.Module) -> str | None:
    """Which of the kernels' activations a module computes, found by computing it; None for another."""
    x = torch.linspace(-6.0, 6.0, 101)
    known = {"silu": functional.silu(x), "gelu_tanh": functional.gelu(x, approximate="tanh")}
    given = activation(x)
    return next((name for name, wanted in known.items() if torch.allclose(given, wanted, atol=1e-6)), None)
