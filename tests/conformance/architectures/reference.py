"""What transformers' own forward answers, and which parts of a model could be left out without that being noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

COUNT = 12
LENGTHS = (3, 17, 9, 24, 5, 13)  # all answers go past the window, most prompts do so themselves
_VOCABULARY = 131


@dataclass(frozen=True)
class Answer:
    """Greedy tokens after each prompt, and the logits [T, vocabulary] of the prompt's own tokens."""

    tokens: list[list[int]]
    logits: list[Tensor]


def prompts() -> list[list[int]]:
    return [
        torch.randint(1, _VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        for length in LENGTHS
    ]


@torch.no_grad()
def answer(model: PreTrainedModel) -> Answer:
    """Without a cache: each token comes from a forward pass over all that precede it."""
    tokens, logits = [], []
    for prompt in prompts():
        every = list(prompt)
        for _ in range(COUNT):
            given = model(input_ids=torch.tensor([every]), use_cache=False).logits[0]
            if len(every) == len(prompt):
                logits.append(given)
            every.append(int(given[-1].argmax()))
        tokens.append(every[len(prompt) :])
    return Answer(tokens, logits)


@torch.no_grad()
def unnoticed(model: PreTrainedModel, whole: Answer, attention: Sequence[str]) -> list[str]:
    """Attention modules, by name, and experts, that answer zeros without changing a greedy token.

    One pass over an answer suffices: without a change, each of its tokens is again the best one after those before it.
    """
    return [name for name, silence in _mutations(model, attention) if not _changes(model, whole, silence)]


Silence = Callable[[], Any]


def _changes(model: PreTrainedModel, whole: Answer, silence: Silence) -> bool:
    with silence():
        for prompt, tokens in zip(prompts(), whole.tokens, strict=True):
            given = model(input_ids=torch.tensor([prompt + tokens[:-1]]), use_cache=False).logits[0]
            if given[len(prompt) - 1 :].argmax(-1).tolist() != tokens:
                return True
    return False


def _mutations(model: PreTrainedModel, attention: Sequence[str]) -> Iterator[tuple[str, Silence]]:
    for name in attention:
        yield name, partial(_silent_module, model.get_submodule(name))
    for path, module in model.named_modules():
        if path.rpartition(".")[2] != "experts":
            continue
        if isinstance(module, nn.ModuleList):
            for expert, child in enumerate(module):
                yield f"{path}.{expert}", partial(_silent_module, child)
            continue
        outputs = [parameter for name, parameter in module.named_parameters() if "down" in name or "output" in name]
        for expert in range(max((output.shape[0] for output in outputs), default=0)):
            yield f"{path}.{expert}", partial(_silent_expert, outputs, expert)


@contextmanager
def _silent_module(module: nn.Module) -> Iterator[None]:
    def zero(module: nn.Module, arguments: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    handle = module.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _silent_expert(outputs: list[nn.Parameter], expert: int) -> Iterator[None]:
    """Zeros an expert's last product, and its bias: what a rank would add that left this expert out."""
    kept = [output[expert].clone() for output in outputs]
    for output in outputs:
        output[expert] = 0
    try:
        yield
    finally:
        for output, values in zip(outputs, kept, strict=True):
            output[expert] = values
