"""stage_probe: whether a stage of a model computes what the whole model does, given only hidden states from before.

Nothing is believed because of a model's name: it runs once whole and once cut, on numbers that need no weights. Each
linear layer, attention and experts module answers with numbers that depend on all that it is given, so whatever layers
hand on to each other beside hidden states shows in what leaves the stage.
"""

from __future__ import annotations

import zlib
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from backend.errors import UnsupportedModelError
from backend.layer_span import LayerSpan
from backend.surgery.build import build
from backend.surgery.choosers import idle
from backend.surgery.decoder_layers import list_around
from backend.surgery.flow import fill
from backend.surgery.handed_on import hand_on
from backend.surgery.one_thread import one_thread
from backend.surgery.rope import RopeLengths, replace_rope
from backend.surgery.stage_cut import StageCut, cut_stage
from backend.surgery.stage_gates import Gates, StageEnd
from backend.surgery.tempered import tell_positions
from backend.surgery.trace import Traced, are_own_experts

ECHO = "shardwise-stage"
TOKENS = 4
# What is equal is so bit by bit, as the same is computed from the same; this is for processors that think otherwise.
_TOLERANCE = 1e-6


def probe_stage(config: PreTrainedConfig, traced: Traced, span: LayerSpan) -> StageCut:
    """How to cut the stage, after trying it out on a model of its own.

    Raises:
        UnsupportedModelError: a model of which a stage is more than its layers, with the reason.
        ValueError: a span that the model does not have.
    """
    with one_thread():
        return _probe(config, traced, span)


def _probe(config: PreTrainedConfig, traced: Traced, span: LayerSpan) -> StageCut:
    try:
        model = _EchoModel(build(deepcopy(config), torch.float32), traced)
        path = _only_list(model.model, traced, config)
        whole = model.run(path)
        # What a module has kept of a pass must not be what the cut model would have kept of it.
        model.run(path, first=11)
    except _ERRORS as error:
        raise uncuttable(config, f"its forward pass cannot be followed ({_line(error)})") from error
    cut = _found(config, traced, span, path, whole)
    try:
        made = model.run_stage(cut, whole.given[span.first])
    except _ERRORS as error:
        raise uncuttable(config, f"its layers do not run without those before them ({_line(error)})") from error
    wanted = [*whole.made[span.first : span.stop], whole.logits if span.ends else whole.given[span.stop]]
    if len(made) != len(wanted) or not all(_same(*pair) for pair in zip(made, wanted, strict=True)):
        raise uncuttable(config, "its layers hand on more than hidden states")
    return cut


def _same(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=_TOLERANCE, atol=_TOLERANCE)


_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError)


def uncuttable(config: PreTrainedConfig, why: str) -> UnsupportedModelError:
    """The error for a model that is served by one stage only."""
    return UnsupportedModelError(
        f"Models of type {config.model_type} are not cut into stages yet.",
        f"What stands in the way: {why}.",
        "Use --pp 1.",
    )


def _only_list(model: nn.Module, traced: Traced, config: PreTrainedConfig) -> str:
    """The path of the one list that has all of the model's layers."""
    if traced.repeated:
        raise uncuttable(config, "its layers run several times in a pass")
    paths = {list_around(model, layer.name) for layer in traced.layers}
    path = next(iter(paths))
    if len(paths) > 1 or path is None:
        raise uncuttable(config, "its layers do not lie in one list")
    return path


def _found(config: PreTrainedConfig, traced: Traced, span: LayerSpan, path: str, whole: _Run) -> StageCut:
    if whole.order != list(range(whole.count)):
        raise uncuttable(config, "its layers do not run one after the other")
    if span.of != whole.count or not 0 <= span.first < span.stop <= span.of:
        raise ValueError(f"layers {span.first} to {span.stop} of {span.of}, of a model that has {whole.count}")
    shapes = {tuple(given.shape) for given in whole.given}
    if len(shapes) > 1 or next(iter(shapes))[:2] != (1, TOKENS):
        raise uncuttable(config, "what its layers hand on is not one row a token")
    cut = StageCut(span, path, tuple(whole.answers), next(iter(shapes))[2:], tuple(whole.behind))
    slots = [slot for slot, layer in enumerate(traced.layers) if layer.name.startswith(cut.inside)]
    if slots != list(range(span.first_slot, span.stop_slot)):
        raise uncuttable(config, f"its layers {span.first} to {span.stop - 1} have the attention layers {slots}")
    return cut


@dataclass(slots=True)
class _Run:
    """One run of the whole model.

    Attributes:
        order: the layers' numbers in the order of their runs; `count` is how many the list has.
        given: the hidden states that each got; `made` those that it returned.
        answers: what each returned, as StageCut has it.
        behind: modules with parameters that ran only after all layers, by path.
    """

    count: int
    order: list[int] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    answers: list[tuple[Any, ...] | None] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    early: set[str] = field(default_factory=set)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def behind(self) -> list[str]:
        return [path for path in dict.fromkeys(self.called) if path not in self.early]

    def begin(self, number: int, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        self.order.append(number)
        self.given.append(hidden.clone())
        self.early.update(self.called)

    def end(self, module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        self.made.append(_hidden_of(answer))
        if not isinstance(answer, tuple):
            self.answers.append(None)
            return
        # Tensors beside hidden states are told to nobody: if anybody takes them, the cut model will show it.
        rest = (None if isinstance(one, Tensor) else one for one in answer[1:])
        self.answers.append((None, *rest))

    def note(self, path: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.called.append(path)


class _EchoModel:
    """A model prepared for such runs; it can be cut after the first, and is of no other use afterwards."""

    def __init__(self, model: PreTrainedModel, traced: Traced) -> None:
        self.model = model
        self._lengths = RopeLengths()
        idle(model, traced.choosers)
        AttentionInterface.register(ECHO, _attend)
        ExpertsInterface.register(ECHO, _experts)
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if config is not None:
                config._attn_implementation, config._experts_implementation = ECHO, ECHO
        replace_rope(model, model.config, self._lengths)
        tell_positions(model, self._lengths)
        for path, module in list(model.named_modules()):
            _prepare(path, module)
        hand_on(model, traced.unhanded, "echoes")

    def run(self, layers: str, first: int = 1) -> _Run:
        """All of it, on tokens from `first` on.

        Raises what the model's own code raises where it cannot work on what it is given.
        """
        every: Any = self.model.get_submodule(layers)
        run = _Run(len(every))
        hooks = [
            module.register_forward_pre_hook(partial(run.note, path))
            for path, module in self.model.named_modules()
            if any(one is not None for one in module._parameters.values()) and not path.startswith(f"{layers}.")
        ]
        for number, layer in enumerate(every):
            hooks.append(layer.register_forward_pre_hook(partial(run.begin, number), with_kwargs=True))
            hooks.append(layer.register_forward_hook(run.end))
        run.logits = self._forward(first)
        for hook in hooks:
            hook.remove()
        return run

    def run_stage(self, cut: StageCut, received: Tensor) -> list[Tensor]:
        """What each of the stage's layers returns, then what leaves the stage: hidden states, or logits."""
        gates = Gates()
        gates.received = received.clone()
        cut_stage(self.model, cut, gates)
        layers: Any = self.model.get_submodule(cut.layers)
        made: list[Tensor] = []
        for layer in layers[cut.span.first : cut.span.stop]:
            layer.register_forward_hook(lambda module, arguments, answer: made.append(_hidden_of(answer)))
        try:
            logits = self._forward()
        except StageEnd as end:
            return [*made, end.hidden]
        if not cut.span.ends:
            raise RuntimeError("the pass went on behind the stage's last layer")
        return [*made, logits]

    @torch.no_grad()
    def _forward(self, first: int = 1) -> Tensor:
        positions = torch.arange(TOKENS)
        self._lengths.positions, self._lengths.lengths = positions, torch.full((TOKENS,), TOKENS)
        tokens = torch.arange(first, first + TOKENS)
        return self.model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, echoes=True).logits


def _hidden_of(answer: Any) -> Tensor:
    """A copy of the hidden states that a layer returned: others may write to them."""
    hidden: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return hidden.clone()


def _prepare(path: str, module: nn.Module) -> None:
    if type(module) is nn.Linear:
        vars(module)["forward"] = partial(_linear, path, module.out_features)
        # Some models take the weight and multiply themselves.
        module.weight = nn.Parameter(_banded(module.out_features, module.in_features), requires_grad=False)
    elif isinstance(module, nn.Embedding):
        vars(module)["forward"] = partial(_look_up, path, module.embedding_dim)
        # Some models take a row of the table themselves, for what is no text.
        module.weight = nn.Parameter(torch.zeros(()).expand(module.weight.shape), requires_grad=False)
    elif are_own_experts(module):
        vars(module)["forward"] = partial(_experts, module)
    else:
        fill(path, module)


def _banded(rows: int, columns: int) -> Tensor:
    """[rows, columns] that takes the memory of one row and one column: each row is the one before, shifted."""
    numbers = torch.rand(rows + columns, generator=torch.Generator().manual_seed(rows * columns)) - 0.5
    return numbers.as_strided((rows, columns), (1, 1))


def _linear(path: str, width: int, x: Tensor) -> Tensor:
    return _echo(path, width, x)


def _look_up(path: str, width: int, tokens: Tensor) -> Tensor:
    return _echo(path, width, tokens.unsqueeze(-1).float())


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **unused: Any
) -> tuple[Tensor, None]:
    heads, size = query.shape[1], value.shape[-1]
    given = torch.cat([one.transpose(1, 2).flatten(2) for one in (query, key, value)], -1)
    return _echo("attention", heads * size, given).unflatten(-1, (heads, size)), None


def _experts(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    chosen = torch.cat([hidden_states, top_k_index.to(hidden_states.dtype), top_k_weights.to(hidden_states.dtype)], -1)
    return _echo("experts", hidden_states.shape[-1], chosen)


def _echo(name: str, width: int, x: Tensor) -> Tensor:
    """[..., T, in] -> [..., T, width]: between 0.5 and 1.5, each element depending on all of its token's input.

    By random numbers: those of a regular pattern may be blind to what another pattern has made.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weights = torch.randn(x.shape[-1], generator=generator)
    phases = torch.rand(width, generator=generator) * 2 * torch.pi
    drawn = (x.float() * weights).sum(-1, keepdim=True) / x.shape[-1] ** 0.5
    return (1.0 + 0.5 * torch.sin(drawn + phases)).to(x.dtype)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
