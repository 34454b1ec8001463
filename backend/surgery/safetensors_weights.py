"""Reads safetensors shards tensor by tensor, renamed and converted as transformers would, into their places."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from backend.errors import BrokenModelError
from backend.library.files import ModelFiles
from backend.library.safetensors_header import read_safetensors_header
from backend.surgery.cuts import Cut
from backend.surgery.packings.packing import Packing
from backend.surgery.packings.source import TensorSource
from backend.surgery.packings.table import PACKINGS
from backend.surgery.places import Places
from backend.surgery.stage_cut import StageNames


@dataclass(slots=True)
class _Group:
    """Tensors that a converter turns into others: per-expert weights that become one, and the like."""

    converter: WeightConverter
    sources: list[tuple[str, str]] = field(default_factory=list)  # (name in the file, pattern it matched)


@dataclass(slots=True)
class _Reading:
    """What is to be read: tensors that go straight to their place, and groups, by target name."""

    direct: dict[str, str] = field(default_factory=dict)  # name in the file -> name in the model
    groups: dict[str, _Group] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_safetensors(
    model: PreTrainedModel, files: ModelFiles, idle: tuple[str, ...] = ()
) -> Callable[[Places, Callable[[int, int], None], StageNames | None], None]:
    """Prepares reading for a model before surgery; the function returned fills the places of the operated model.

    idle: paths of modules that are left out; what the files have of them is not read.
    """
    source, reading = _prepared(model, files, idle)

    def read(places: Places, on_progress: Callable[[int, int], None], names: StageNames | None = None) -> None:
        own = reading if names is None else _of_stage(reading, names)
        total = sum(Path(path).stat().st_size for path in files.weights)
        if names is not None:
            wanted = _stored_names(own, source)
            total = sum(
                entry.bytes for path in files.weights for entry in read_safetensors_header(Path(path))
                if entry.name in wanted
            )  # fmt: skip
        _Reader(files, source, places, on_progress, total, names).read(own, model)

    return read


def stage_safetensors(
    model: PreTrainedModel, files: ModelFiles, idle: tuple[str, ...]
) -> Callable[[StageNames], frozenset[str]]:
    """Prepares, for a model before surgery, asking which of the files' tensors a stage of it reads."""
    source, reading = _prepared(model, files, idle)
    return lambda names: _stored_names(_of_stage(reading, names), source)


def _prepared(model: PreTrainedModel, files: ModelFiles, idle: tuple[str, ...]) -> tuple[TensorSource, _Reading]:
    with ExitStack() as stack:
        shards = [stack.enter_context(safe_open(path, framework="pt")) for path in files.weights]
        names = [name for shard in shards for name in shard.keys()]  # noqa: SIM118 - not a mapping
    source = TensorSource(names, _packing(model), files.name)
    return source, _assign(model, source.names, files.name, idle)


def _of_stage(reading: _Reading, names: StageNames) -> _Reading:
    """What of it goes to places of the stage, under their names there; of tied tensors only one."""
    direct: dict[str, str] = {}
    for source, target in reading.direct.items():
        place = names.place(target)
        if place is not None and place not in direct.values():
            direct[source] = place
    # A converter may make tensors of other names, of the same layer; those that have no place here are left out then.
    groups = {target: group for target, group in reading.groups.items() if names.place(target) is not None}
    return _Reading(direct, groups)


def _stored_names(reading: _Reading, source: TensorSource) -> frozenset[str]:
    """The files' tensors that it is read from."""
    wanted = [*reading.direct, *(name for group in reading.groups.values() for name, _ in group.sources)]
    return frozenset(name for one in wanted for name in source.stored(one))


def _packing(model: PreTrainedModel) -> Packing | None:
    """How the files' weights are packed, as config.json has it."""
    quantization: Any = getattr(model.config, "quantization_config", None)
    if quantization is None:
        return None
    stated: dict[str, Any] = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return PACKINGS[str(stated["quant_method"])](stated)


def _assign(model: PreTrainedModel, names: list[str], file: str, idle: tuple[str, ...]) -> _Reading:
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    known = model.state_dict()
    unread = tuple(f"{path}." for path in idle)
    reading = _Reading()
    for name in sorted(names, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target.startswith(unread):
            reading.ignored.append(name)
        elif pattern is not None:
            reading.groups.setdefault(target, _Group(by_pattern[pattern])).sources.append((name, pattern))
        elif target in known:
            reading.direct[name] = target
        elif _ignorable(model, target):
            reading.ignored.append(name)
        else:
            raise BrokenModelError(
                f"{file} has a tensor that the model does not know.",
                f"It is called {name}.",
                "Check that config.json belongs to these weights.",
            )
    return reading


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts expert 2 before expert 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _ignorable(model: PreTrainedModel, name: str) -> bool:
    """Tensors that transformers leaves out as well: recomputed buffers, and heads for training only."""
    patterns = {r"rotary_emb\.inv_freq$", r"\.masked_bias$", r"\.attn\.bias$"}
    patterns |= set(model._keys_to_ignore_on_load_unexpected or ())
    return any(re.search(pattern, name) for pattern in patterns)


class _Reader:
    """Walks a _Reading with all shards open."""

    def __init__(
        self,
        files: ModelFiles,
        source: TensorSource,
        places: Places,
        on_progress: Callable[[int, int], None],
        total: int,
        names: StageNames | None,
    ) -> None:
        """total: bytes that are to be read. names: of a stage, what of converted tensors has places."""
        self._files, self._source, self._places, self._on_progress = files, source, places, on_progress
        self._total, self._names = total, names
        self._done = 0
        self._shards: dict[str, Any] = {}

    def read(self, reading: _Reading, model: PreTrainedModel) -> None:
        self._on_progress(0, self._total)
        with ExitStack() as stack:
            for path in self._files.weights:
                shard = stack.enter_context(safe_open(path, framework="pt"))
                self._shards |= dict.fromkeys(shard.keys(), shard)
            for source, target in reading.direct.items():
                span = _span(self._places.cut_of(target))
                self._places.fill(target, self._tensor(source, span), cut=span is not None)
            for target, group in reading.groups.items():
                self._convert(target, group, model)
        self._on_progress(self._total, self._total)

    def _tensor(self, name: str, span: tuple[int, range] | None = None) -> Tensor:
        """All of a tensor, or of a dimension of it a range; of one that is not packed, only that is read."""
        if span is not None and not self._source.packs(name):
            return self._stored(name, span)
        tensor = self._source.tensor(name, self._stored)
        return tensor if span is None else tensor.narrow(span[0], span[1].start, len(span[1]))

    def _stored(self, name: str, span: tuple[int, range] | None = None) -> Tensor:
        tensor: Tensor
        if span is None:
            tensor = self._shards[name].get_tensor(name)
        else:
            dim, kept = span
            tensor = self._shards[name].get_slice(name)[(*(slice(None),) * dim, slice(kept.start, kept.stop))]
        self._done += tensor.numel() * tensor.element_size()
        self._on_progress(min(self._done, self._total), self._total)
        return tensor

    def _convert(self, target: str, group: _Group, model: PreTrainedModel) -> None:
        names: dict[str, list[str]] = defaultdict(list)
        for source, pattern in group.sources:
            names[pattern].append(source)
        own = _own_sources(names, self._places.cut_of(target))
        gathered = {pattern: [self._tensor(source) for source in own[pattern]] for pattern in own}
        made = _run(group.converter, gathered, target, model)
        for name, value in made.items():
            place = name if self._names is None else self._names.place(name)
            if place is not None:
                self._places.fill(place, value[0] if isinstance(value, list) else value, cut=own is not names)


def _span(cut: Cut | None) -> tuple[int, range] | None:
    """The cut as one range of a dimension, where it is one."""
    if cut is None or bool((cut.index.diff() != 1).any()):
        return None
    return cut.dim, range(int(cut.index[0]), int(cut.index[-1]) + 1)


def _own_sources(names: dict[str, list[str]], cut: Cut | None) -> dict[str, list[str]]:
    """The tensors to read: those of a rank's own experts, where each file tensor is one expert's and all are stacked.

    Returns `names` itself where all are needed.
    """
    span, counts = _span(cut), {len(sources) for sources in names.values()}
    if span is None or span[0] != 0 or len(counts) != 1 or counts.pop() < max(2, span[1].stop):
        return names
    return {pattern: sources[span[1].start : span[1].stop] for pattern, sources in names.items()}


def _run(
    converter: WeightConverter, gathered: dict[str, list[Tensor]], target: str, model: PreTrainedModel
) -> dict[str, Any]:
    """transformers' own conversion of one group: tensors by their full names in the model."""
    converter.collected_tensors = defaultdict(list)
    for pattern, tensors in gathered.items():
        for tensor in tensors:
            future: Future[Tensor] = Future()
            future.set_result(tensor)
            converter.collected_tensors[pattern].append(future)
    return converter.convert(target, model=model, config=model.config)
