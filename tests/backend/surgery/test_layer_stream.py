"""Streamed layers: the very logits of resident ones, copied ahead of their turn, in the two buffers that they have."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.parallel.division import Division
from backend.planner.hosted import BUFFERS
from backend.surgery.build import build
from backend.surgery.decoder_layers import decoder_layers
from backend.surgery.describe import trace_model
from backend.surgery.hosted_layer import ALIGNMENT, HostedLayer, layer_tensors
from backend.surgery.layer_stream import stream_layers
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from backend.surgery.pack import pack_model
from backend.surgery.store import held_bytes
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.thread_group import on_ranks, thread_groups
from tests.fakes.tiny_models import FAMILIES, make_checkpoint

# Plain, with experts, with norms and sizes of its own, with latents; and a second layout of experts, with biases.
SAMPLE = ("llama", "qwen3-moe", "gemma2", "deepseek-v3", "gpt-oss")
CPU = torch.device("cpu")
PROMPT = [5, 17, 99, 3, 42, 7, 7, 120]


class RecordingLane:
    """Copies as a processor's does, and notes what was put in line."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def copy(self, buffer: int, source: Tensor, target: Tensor) -> None:
        self.seen.append(("copy", buffer))
        target.copy_(source)

    def arrive(self, buffer: int) -> None:
        self.seen.append(("arrive", buffer))

    def leave(self, buffer: int) -> None:
        self.seen.append(("leave", buffer))

    def finish(self) -> None:
        pass


class LateLane(RecordingLane):
    """A device that copies no sooner than it has to: when something waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: dict[int, tuple[Tensor, Tensor]] = {}

    def copy(self, buffer: int, source: Tensor, target: Tensor) -> None:
        self._begun[buffer] = source, target

    def arrive(self, buffer: int) -> None:
        if buffer in self._begun:
            source, target = self._begun.pop(buffer)
            super().copy(buffer, source, target)


def load(family: str, folder: Path, hosted: tuple[int, ...] = (), name: str = "model", **division: Any) -> ServedModel:
    """The model as a GPU would have it: no kernels of the processor's; streams where layers are hosted."""
    weight_format = WEIGHT_FORMATS[name]
    model = load_model(
        make_checkpoint(family, folder),
        dtype=torch.float32,
        device=CPU,
        on_progress=lambda done, total: None,
        stored=None if name == "model" else weight_format,
        hosted=hosted,
        **division,
    )
    return pack_model(model, weight_format, None)


def run(model: ServedModel, parts: list[list[int]]) -> list[Tensor]:
    """Logits of every token, the parts of one sequence computed one after the other."""
    cache, start, found = SequenceCache(), 0, []
    for part in parts:
        count = len(part)
        positions = torch.arange(start, start + count)
        context = PlainAttentionContext(model.facts, [(cache, start, count)])
        lengths = torch.full((count,), start + count)
        found.append(model.forward(torch.tensor(part), positions, lengths, torch.arange(count), context))
        start += count
    return found


def greedy(model: ServedModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(run(model, [tokens])[0][-1].argmax()))
    return tokens[len(prompt) :]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["model", "int8", "nf4", "fp8"])
@pytest.mark.parametrize("family", SAMPLE)
def test_the_very_logits_of_a_resident_model(family: str, name: str, tmp_path: Path) -> None:
    resident = load(family, tmp_path, name=name)
    wanted, answer = run(resident, [PROMPT, [9], [11]]), greedy(resident, PROMPT, 6)
    streamed = stream_layers(load(family, tmp_path, (0, 1, 2), name))
    assert same(run(streamed, [PROMPT, [9], [11]]), wanted)
    assert greedy(streamed, PROMPT, 6) == answer


@pytest.mark.parametrize("layers", [3, 4, 5])
def test_a_layer_waits_for_its_copy(layers: int, tmp_path: Path) -> None:
    late, plain = (stream_layers(load_deep(tmp_path, layers), lane) for lane in (LateLane(), None))
    assert same(run(late, [PROMPT, [9], [11]]), run(plain, [PROMPT, [9], [11]]))


@pytest.mark.parametrize(("layers", "copies"), [(2, 0), (3, 2), (4, 4), (5, 5), (7, 7)])
def test_a_layer_is_copied_before_it_computes_and_so_is_the_next(layers: int, copies: int, tmp_path: Path) -> None:
    model, lane = load_deep(tmp_path, layers), RecordingLane()
    modules = [model.module.get_submodule(path) for path in model.hosted]
    own = [[tensor.clone() for tensor in layer_tensors(module)] for module in modules]
    computed: list[int] = []

    def here(number: int) -> bool:
        return all(torch.equal(*pair) for pair in zip(layer_tensors(modules[number]), own[number], strict=True))

    def computes(number: int) -> None:
        lane.seen.append(("compute", number % BUFFERS))
        computed.append(number)
        assert here(number)
        assert number + 1 == layers or here(number + 1), "the next one is on its way already"

    for number, module in enumerate(modules):
        next(module.children()).register_forward_pre_hook(lambda *_, number=number: computes(number))
    streamed = stream_layers(model, lane)
    assert lane.seen == [("leave", 0), ("copy", 0), ("leave", 1), ("copy", 1)]
    for _ in range(2):
        lane.seen.clear()
        computed.clear()
        run(streamed, [PROMPT])
        assert computed == list(range(layers))
        assert sum(what == "copy" for what, _ in lane.seen) == copies
        assert here(0)
        assert here(1), "the first ones are there for the next step"
        for before, after in pairwise(lane.seen):
            if after[0] == "compute":
                assert before == ("arrive", after[1])
            if after[0] == "copy":
                assert before == ("leave", after[1])
            if after[0] == "leave":
                assert before == ("compute", after[1]), "what is written over has computed"


def load_deep(folder: Path, layers: int) -> ServedModel:
    """A Llama of more layers than the tiny ones have, all of them hosted."""
    plain = FAMILIES["llama"]

    def deeper() -> Any:
        config = plain()
        config.num_hidden_layers = layers
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "llama", deeper)  # pyright: ignore[reportArgumentType]
        return load("llama", folder, tuple(range(layers)))


def test_only_some_layers_and_rest_in_place(tmp_path: Path) -> None:
    resident = load("llama", tmp_path)
    streamed = stream_layers(load("llama", tmp_path, (0, 2)))
    assert streamed.hosted == ("model.layers.0", "model.layers.2")
    assert same(run(streamed, [PROMPT, [9]]), run(resident, [PROMPT, [9]]))


def test_the_buffers_are_all_that_streamed_layers_have_on_the_device(tmp_path: Path) -> None:
    model = load("qwen3-moe", tmp_path, (0, 1, 2), "int8")
    whole = model.weights_bytes
    layers = [model.module.get_submodule(path) for path in model.hosted]
    sizes = [HostedLayer(layer).size for layer in layers]
    before = [weakref.ref(tensor.untyped_storage()) for layer in layers for tensor in layer_tensors(layer)]
    streamed = stream_layers(model)
    gc.collect()
    assert before
    assert all(one() is None for one in before), "something still holds the weights where they were"
    places: dict[int, set[int]] = defaultdict(set)
    for number, layer in enumerate(layers):
        for tensor in layer_tensors(layer):
            places[number % BUFFERS].add(tensor.untyped_storage().data_ptr())
            assert tensor.data_ptr() % 64 == 0
            assert tensor.untyped_storage().nbytes() <= max(sizes)
    assert all(len(found) == 1 for found in places.values())
    assert places[0] != places[1]
    in_layers = sum(tensor.nbytes for layer in layers for tensor in layer_tensors(layer))
    buffers = max(sizes[::2]) + max(sizes[1::2])
    assert whole == held_bytes(streamed.module)
    assert streamed.weights_bytes == whole - in_layers + buffers
    assert all(size % ALIGNMENT == 0 for size in sizes)


def test_a_pass_that_broke_off_or_goes_another_way_costs_time_and_no_answer(tmp_path: Path) -> None:
    resident, streamed = load("llama", tmp_path), stream_layers(load("llama", tmp_path, (0, 1, 2)))
    layers: Any = streamed.module.get_submodule("model.layers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers[1].mlp, "forward", _break)
        with pytest.raises(RuntimeError, match="broken"):
            run(streamed, [PROMPT])
    assert same(run(streamed, [PROMPT]), run(resident, [PROMPT]))
    for model in (resident, streamed):
        turned: Any = model.module.get_submodule("model")
        turned.layers = nn.ModuleList(reversed(list(turned.layers)))
    assert same(run(streamed, [PROMPT]), run(resident, [PROMPT]))


def _break(*_: Any, **__: Any) -> None:
    raise RuntimeError("broken")


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_each_rank_streams_its_own_share(family: str, tmp_path: Path) -> None:
    def logits(hosted: tuple[int, ...]) -> list[Tensor]:
        groups = thread_groups(2)

        def one(rank: int) -> ServedModel:
            division = Division(rank, (1.0, 1.0), (1.0, 1.0), "expert")
            model = load(family, tmp_path, hosted, division=division, group=groups[rank])
            return stream_layers(model) if hosted else model

        models = [one(rank) for rank in range(2)]
        return on_ranks(groups, lambda rank: run(models[rank], [PROMPT, [9]]))[0]

    assert same(logits((0, 1, 2)), logits(()))


def test_layers_that_share_weights_with_others_stay(tmp_path: Path) -> None:
    config = FAMILIES["llama"]()
    _, traced = trace_model(config)
    names = [layer.name for layer in traced.layers]
    model: Any = build(config, torch.float32)
    assert decoder_layers(model, names) == tuple(f"model.layers.{number}" for number in range(3))
    layers = model.model.layers
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    assert decoder_layers(model, names) == ("model.layers.1",)
    layers[1].mlp.up_proj.weight = layers[1].mlp.gate_proj.weight
    assert decoder_layers(model, names) == ()
