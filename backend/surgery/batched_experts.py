"""BatchedExperts: experts that compute every token, one product for all of them, divided over ranks by columns.

Llama 4's lie outside transformers' interface for experts: their module gets all tokens once for each expert, scaled by
the router, and hands back as many rows, which the module around it adds up. Recognised by what both compute.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from backend.parallel.division import MULTIPLE, Division, divide
from backend.parallel.group import Group
from backend.surgery.cuts import Cut
from backend.surgery.expert_shares import are_experts

_EXPERTS, _HIDDEN, _WIDTH, _TOKENS = 3, 8, 6, 2


class BatchedExperts(nn.Module):
    """One rank's columns of all experts: [experts * T, hidden] -> the same, of which the sum over experts is right.

    That sum stands in the rows of the first expert, the others are zeros: what ranks add up is T rows, not all.
    """

    def __init__(self, module: Any, group: Group) -> None:
        """module: with this rank's columns, parameters on meta."""
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = module.gate_up_proj, module.down_proj, module.act_fn
        self._group = group

    def forward(self, hidden_states: Tensor) -> Tensor:
        experts, hidden = self.gate_up_proj.shape[:2]
        own = _compute(hidden_states.view(experts, -1, hidden), self.gate_up_proj, self.down_proj, self.act_fn).sum(0)
        self._group.all_reduce(own)
        out = own.new_zeros(experts, *own.shape)
        out[0] = own
        return out.view(-1, hidden)


def batched_experts(module: Any) -> bool:
    """Whether the module computes such experts; its parameters may lie on meta."""
    if set(module._parameters) != {"gate_up_proj", "down_proj"} or are_experts(module):
        return False
    up, down, activation = module.gate_up_proj, module.down_proj, getattr(module, "act_fn", None)
    if up.dim() != 3 or tuple(down.shape) != (up.shape[0], up.shape[2] // 2, up.shape[1]) or activation is None:
        return False
    generator = torch.Generator().manual_seed(19)
    probe: Any = copy.copy(module)
    shapes = {"gate_up_proj": (_EXPERTS, _HIDDEN, 2 * _WIDTH), "down_proj": (_EXPERTS, _WIDTH, _HIDDEN)}
    drawn = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    probe._parameters = drawn
    for name, value in list(vars(module).items()):  # views go by the sizes that the module remembers
        if type(value) is int and value == up.shape[1]:
            vars(probe)[name] = _HIDDEN
    x = torch.randn(_EXPERTS * _TOKENS, _HIDDEN, generator=generator)
    with torch.no_grad():
        wanted = _compute(x.view(_EXPERTS, -1, _HIDDEN), drawn["gate_up_proj"], drawn["down_proj"], activation)
        try:
            given = probe(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    return isinstance(given, Tensor) and given.numel() == wanted.numel() and torch.allclose(
        given.view(wanted.shape), wanted, atol=1e-5
    )  # fmt: skip


@torch.no_grad()
def adds_up(around: nn.Module, experts: Any, hidden: int) -> bool:
    """Whether the module around the experts uses nothing of their rows but the sum over experts.

    around: one that can run (of a FlowModel); its experts' forward is exchanged meanwhile.
    """
    count = experts.gate_up_proj.shape[0]
    generator = torch.Generator().manual_seed(31)
    x = torch.rand(1, _TOKENS, hidden, generator=generator) + 0.5
    rows = torch.rand(count, _TOKENS, hidden, generator=generator)
    collected = torch.zeros_like(rows)
    collected[0] = rows.sum(0)
    answers = []
    before = vars(experts).get("forward")
    for given in (rows, collected):
        vars(experts)["forward"] = lambda x, given=given: given.reshape(-1, hidden).clone()
        try:
            out = around(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        finally:
            del vars(experts)["forward"]
            if before is not None:
                vars(experts)["forward"] = before
        answers.append(out[0] if isinstance(out, tuple) else out)
    return torch.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)


def columns_of(experts: Any, division: Division) -> dict[str, Cut]:
    """What one rank keeps, by parameter."""
    width = experts.down_proj.shape[1]
    own = divide(width, division.mlp, MULTIPLE)[division.rank]
    inner = torch.arange(own.start, own.stop)
    return {"gate_up_proj": Cut(2, torch.cat((inner, inner + width))), "down_proj": Cut(1, inner)}


def _compute(x: Tensor, gate_up: Tensor, down: Tensor, activation: nn.Module) -> Tensor:
    """x: [experts, T, hidden] -> the same."""
    gate, up = torch.bmm(x, gate_up).chunk(2, dim=-1)
    return torch.bmm(up * activation(gate), down)
