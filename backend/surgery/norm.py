"""ServedRMSNorm: the root-mean-square norm of all families. Modules are recognised by what they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROWS = 3


class ServedRMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), computed in float32 and returned in x's dtype.

    `offset` is 1 where the family stores its gains around zero, as Gemma does. `kernel` maps [..., size] to the same
    shape; a faster one may be put in its place after loading.
    """

    def __init__(self, weight: nn.Parameter, epsilon: float, offset: float) -> None:
        super().__init__()
        self.weight, self.epsilon, self.offset = weight, epsilon, offset
        self.kernel: Callable[[Tensor], Tensor] = self.normalize

    def gain(self) -> Tensor:
        """The factors [size] in float32."""
        return self.weight.float() + self.offset

    def normalize(self, x: Tensor) -> Tensor:
        if self.offset == 0 and x.dtype == self.weight.dtype:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return functional.rms_norm(x.float(), self.weight.shape, self.gain(), self.epsilon).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}, offset={self.offset}"


def rms_norm(module: nn.Module) -> ServedRMSNorm | None:
    """The replacement for a module that computes a root-mean-square norm over its last dimension, else None."""
    weight = module._parameters.get("weight")
    if getattr(module, "asks_others", False):  # other ranks would not answer a probe
        return None
    if len(module._parameters) != 1 or weight is None or weight.dim() != 1 or module._modules or module._buffers:
        return None
    epsilons = {given for name, given in vars(module).items() if "eps" in name and isinstance(given, float)}
    if len(epsilons) != 1:
        return None
    epsilon = epsilons.pop()
    for offset in (0.0, 1.0):
        if _computes_rms_norm(module, weight.shape[0], epsilon, offset):
            return ServedRMSNorm(weight, epsilon, offset)
    return None


@torch.no_grad()
def _computes_rms_norm(module: nn.Module, size: int, epsilon: float, offset: float) -> bool:
    """Compares the module's own forward with ours, in float32 and bfloat16, on inputs so small that epsilon counts."""
    generator = torch.Generator().manual_seed(11)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        weight = nn.Parameter(torch.randn(size, generator=generator).to(dtype), requires_grad=False)
        scale = torch.tensor([1.0, 30.0, epsilon**0.5])[:, None]
        x = (torch.randn(_ROWS, size, generator=generator) * scale).to(dtype)[None]
        probe = copy.copy(module)
        probe._parameters = {"weight": weight}
        try:
            given = probe(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        if not isinstance(given, Tensor) or given.dtype != dtype:
            return False
        if not torch.allclose(given, ServedRMSNorm(weight, epsilon, offset).normalize(x), tolerance, tolerance):
            return False
    return True
