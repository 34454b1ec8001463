"""chooser_probe: whether attention that is told which keys to attend to is causal attention where it is told of all.

A module runs twice on random numbers: as transformers' eager attention, with its own chooser and a mask, and as it is
served. Its linear layers answer with numbers of their own, so that its real size costs no weights; what they are called
with must be the same.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from backend.surgery import hook
from backend.surgery.choosers import CHOOSER, AnyMask, EveryKey, Idle, chosen_of
from backend.surgery.mask import Mask
from backend.surgery.refusal import unsupported

TOKENS = 5
Call = tuple[tuple[Any, ...], dict[str, Any]]


def chosen_positions(
    config: PreTrainedConfig,
    told: Mapping[str, nn.Module],
    choosers: Mapping[str, nn.Module],
    calls: Mapping[str, Call],
) -> int:
    """Up to how many positions every token attends to all of them; the model's own limit where that is less.

    told: attention modules, by path, that are told which keys to attend to. choosers: by path, as they were before
    Idles took their places. calls: what a trace called the modules with, by path.

    Raises:
        UnsupportedModelError: what is chosen does something else, too.
    """
    text: Any = config.get_text_config()
    longest = text.max_position_embeddings
    known: set[object] = set()
    for name, module in told.items():
        chooser = choosers.get(f"{name}.{CHOOSER}")
        kind = (type(module), chooser is None, *sorted(_plain(module).items()))
        if kind not in known and not attends_causally(module, chooser, calls[name]):
            raise unsupported(config, f"{name} chooses the keys it attends to, and does more with its choice")
        known.add(kind)
    for name, chooser in choosers.items():
        count = chosen_of(chooser, *calls[name], longest) if name in calls else None
        if count is None:
            raise unsupported(config, f"{name} does not say how many keys it chooses")
        longest = min(longest, count)
    return longest


def _plain(module: nn.Module) -> dict[str, Any]:
    """What tells it from others of its class, but for its place."""
    return {key: str(one) for key, one in vars(module).items() if type(one) in (int, float, str) and key != "layer_idx"}


class _CausalContext:
    """An AttentionContext over one sequence: causal softmax attention, in the plainest way."""

    def attend(
        self,
        slot: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        if softcap is not None:
            raise ValueError("no softcap is known with chosen keys")
        group = query.shape[1] // key.shape[1]
        scores = torch.einsum("thd,shd->hts", query, key.repeat_interleave(group, 1)) * scaling
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1)], dim=-1)
        weights = scores.softmax(-1)[..., : key.shape[0]]
        return torch.einsum("hts,shd->thd", weights, value.repeat_interleave(group, 1))


@torch.no_grad()
def attends_causally(module: nn.Module, chooser: nn.Module | None, call: Call) -> bool:
    """Whether the attention module does, as long as all keys are chosen.

    module, chooser: on meta; they are not changed. Without a chooser it is told another module's choice.
    call: what a trace called it with.
    """
    hook.register()
    try:
        theirs = _run(module, chooser, call, "eager", _eager)
        ours = _run(module, chooser and Idle(), call, hook.ATTENTION, _served)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return False
    if theirs.keys() != ours.keys():
        return False
    pairs = [(theirs[path], ours[path]) for path in theirs]
    return bool(pairs) and all(one.shape == two.shape and torch.allclose(one, two, 1e-4, 1e-5) for one, two in pairs)


def _run(module: nn.Module, chooser: nn.Module | None, call: Call, attention: str, given: Any) -> Mapping[str, Tensor]:
    """What its linear layers were called with, by path; those inside the chooser left out."""
    probe: Any = copy.deepcopy(module)
    config = copy.copy(probe.config)
    config._attn_implementation = attention
    probe.config, probe.slot = config, 0
    if chooser is not None:
        probe.set_submodule(CHOOSER, copy.deepcopy(chooser))
    inputs: dict[str, Tensor] = {}
    for path, child in list(probe.named_modules()):
        if type(child) is nn.Linear:
            vars(child)["forward"] = partial(_linear, inputs, path, child.out_features)
        _fill(path, child)
    arguments, keywords = call
    numbered = {name: _real(name, one, given) for name, one in keywords.items() if name != "recorder"}
    context = {} if attention == "eager" else {"context": _CausalContext()}
    probe(*(_real(str(place), one, given) for place, one in enumerate(arguments)), **numbered, **context)
    return {path: one for path, one in inputs.items() if not path.startswith(f"{CHOOSER}.")}


def _fill(path: str, module: nn.Module) -> None:
    """Gives a module's own parameters numbers; of a linear layer's, only the type is ever asked."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            shape = (1,) if type(module) is nn.Linear else tuple(parameter.shape)
            module._parameters[name] = nn.Parameter(_numbers(f"{path}.{name}", *shape), requires_grad=False)


def _linear(inputs: dict[str, Tensor], path: str, width: int, x: Tensor) -> Tensor:
    inputs[path] = x
    return _numbers(path, *x.shape[:-1], width)


def _real(name: str, given: Any, special: Any) -> Any:
    """An argument of the trace as numbers for TOKENS tokens; masks and choices as `special` has them."""
    if isinstance(given, Mask | AnyMask | EveryKey):
        return special(given)
    if isinstance(given, tuple):
        return tuple(_real(f"{name}.{place}", one, special) for place, one in enumerate(given))
    if not isinstance(given, Tensor):
        return given
    if not given.is_floating_point():
        return torch.arange(TOKENS)[None]
    return _numbers(name, 1, TOKENS, *given.shape[2:])


def _eager(given: Any) -> Tensor:
    if isinstance(given, EveryKey):  # in another order for each token
        return torch.stack([torch.arange(TOKENS).roll(token) for token in range(TOKENS)])[None].int()
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return torch.zeros(1, 1, TOKENS, TOKENS).masked_fill(hidden, torch.finfo(torch.float32).min)


def _served(given: Any) -> Any:
    return given if isinstance(given, EveryKey) else AnyMask()


def _numbers(name: str, *shape: int) -> Tensor:
    """Random ones, the same for a name every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
