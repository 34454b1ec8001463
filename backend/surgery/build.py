"""Builds a transformers causal language model with parameters on meta and buffers real. Surgery and loading follow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from backend.surgery import experts, hook, trace
from backend.surgery.refusal import unsupported


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Moves each parameter to meta as it is registered; buffers keep the values that constructors give them.

    (A model built wholly on meta has lost its rotary frequencies and every other computed buffer.)
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, None if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register_on_meta  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        nn.Module.register_parameter = register


# Elements from which on a constructor's memory is not even asked for: the system may refuse what is never used.
_LARGE = 1 << 24


class _LargeOnMeta(TorchFunctionMode):
    """Makes large weights on meta at once. Buffers are smaller, or made of numbers, which these functions do not give.

    (torch.zeros and torch.randn only with three dimensions or more: stacked experts; two may be a mask.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.randn) and keywords.get("device") is None:
            size = args[0] if len(args) == 1 and isinstance(args[0], tuple | list | torch.Size) else args
            plain = all(isinstance(length, int) for length in size)
            if plain and math.prod(size) >= _LARGE and (func is torch.empty or len(size) > 2):
                keywords["device"] = "meta"
        return func(*args, **keywords)


def _instantiate(config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise unsupported(config, "transformers has no causal language model of this type")
    own = deepcopy(config)
    experts.register()
    own._experts_implementation = experts.EXPERTS
    return AutoModelForCausalLM.from_config(own, dtype=dtype, attn_implementation=attention).eval()


def build_for_trace(config: PreTrainedConfig) -> PreTrainedModel:
    """The model with every tensor on meta, whose attention records what it is asked for."""
    trace.register()
    try:
        with torch.device("meta"), no_init_weights():
            return _instantiate(config, torch.float32, trace.TRACE)
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise unsupported(config, f"transformers cannot build it from its config here ({error})") from error


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`, parameters on meta and frozen, buffers real on the CPU, attention going to our hook."""
    hook.register()
    with _parameters_on_meta(), no_init_weights(), _LargeOnMeta():
        model = _instantiate(config, dtype, hook.ATTENTION)
    _keep_wide(model, dtype)
    model.tie_weights()
    return model.requires_grad_(False)


def _keep_wide(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives the tensors that the model wants in float32, whatever its own dtype, that type."""
    for pattern, wide in model._get_dtype_plan(dtype).items():
        for path, module in model.named_modules():
            for name in [*module._parameters, *module._buffers]:
                if re.search(pattern, f"{path}.{name}"):
                    _retype(module, name, wide)


def _retype(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    parameter, buffer = module._parameters.get(name), module._buffers.get(name)
    if parameter is not None:
        module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    elif buffer is not None and buffer.is_floating_point():
        module._buffers[name] = buffer.to(dtype)


def materialize(
    model: nn.Module,
    device: torch.device,
    waits: Callable[[nn.Module], bool] = lambda module: False,
    hosted: Collection[nn.Module] = (),
) -> None:
    """Gives every parameter memory on `device`, without values, and moves the buffers there. Tied ones stay one.

    waits: says of which modules the parameters stay on meta. hosted: modules whose parameters get host memory.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or waits(module):
                continue
            if id(parameter) not in made:
                empty = torch.empty_like(parameter, device="cpu" if module in hosted else device)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
