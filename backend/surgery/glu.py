"""The gated MLP in two products, the gate and up ones merged. Modules are recognised by what they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.surgery.linears import ServedLinear, merge, mergeable, serve

_IN, _WIDTH, _TOKENS = 8, 6, 5


class GluStep(nn.Module):
    """Turns the merged product [..., gate and up] into activation(gate) * up: [..., width].

    `kernel` does it; a faster one for a given `activation` may be put in its place.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.kernel: Callable[[Tensor], Tensor] = self.combine

    def combine(self, product: Tensor) -> Tensor:
        gate, up = product.chunk(2, dim=-1)
        return self.activation(gate) * up

    def forward(self, product: Tensor) -> Tensor:
        return self.kernel(product)


class GatedMlp(nn.Module):
    """down(step(gate_up(x))): replaces an MLP module that computes just this."""

    def __init__(self, gate_up: ServedLinear, step: GluStep, down: ServedLinear) -> None:
        super().__init__()
        self.gate_up, self.step, self.down = gate_up, step, down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.step(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class _Roles:
    """Which child plays which part. `inputs` is gate and up, or the one layer that holds both."""

    inputs: tuple[str, ...]
    down: str
    activation: nn.Module


def gated_mlp(module: nn.Module, path: str) -> GatedMlp | None:
    """The replacement for a module that computes a gated MLP, else None."""
    roles = _roles(module)
    if roles is None:
        return None
    linears: list[nn.Linear] = [module.get_submodule(name) for name in roles.inputs]  # pyright: ignore
    names = [f"{path}.{name}" for name in roles.inputs]
    gate_up = merge(linears, names) if len(linears) == 2 else serve(linears[0], names[0])
    down = serve(module.get_submodule(roles.down), f"{path}.{roles.down}")  # pyright: ignore[reportArgumentType]
    return GatedMlp(gate_up, GluStep(roles.activation), down)


def _roles(module: nn.Module) -> _Roles | None:
    linears = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
    others = [child for child in module.children() if type(child) is not nn.Linear]
    held = sum(1 for _ in module.parameters())
    if any(True for child in others for _ in child.parameters()):
        return None
    if held != sum(1 + (linear.bias is not None) for linear in linears.values()):
        return None
    for down, last in linears.items():
        inputs = tuple(name for name in linears if name != down)
        widths = sum(linears[name].out_features for name in inputs)
        if widths != 2 * last.in_features:
            continue
        if len(inputs) == 2 and not mergeable([linears[name] for name in inputs]):
            continue
        orders = (inputs, inputs[::-1]) if len(inputs) == 2 else (inputs,) if len(inputs) == 1 else ()
        for order in orders:
            for activation in others:
                roles = _Roles(order, down, activation)
                if _computes_glu(module, roles):
                    return roles
    return None


@torch.no_grad()
def _computes_glu(module: nn.Module, roles: _Roles) -> bool:
    """Compares the module's own forward, with tiny random layers in place of its own, to a gated MLP's."""
    generator = torch.Generator().manual_seed(7)
    probe = copy.copy(module)
    probe._modules = dict(module._modules)

    def tiny(name: str, rows: int, columns: int) -> nn.Linear:
        original = module.get_submodule(name)
        linear = nn.Linear(columns, rows, bias=original.bias is not None, dtype=torch.float32)
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        probe._modules[name] = linear
        return linear

    rows = _WIDTH if len(roles.inputs) == 2 else 2 * _WIDTH
    inputs = [tiny(name, rows, _IN) for name in roles.inputs]
    down = tiny(roles.down, _IN, _WIDTH)
    x = torch.randn(1, _TOKENS, _IN, generator=generator)
    product = torch.cat([linear(x) for linear in inputs], dim=-1)
    expected = down(GluStep(roles.activation).combine(product))
    try:
        given = probe(x)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return isinstance(given, Tensor) and given.shape == expected.shape and torch.allclose(given, expected, atol=1e-5)
