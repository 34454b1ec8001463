"""The program of one rank of the matrix: loads its share of model after model, and answers prompts with the others."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from backend.errors import UnsupportedModelError
from backend.layer_span import LayerSpan
from backend.parallel.division import Division
from backend.parallel.group import Group
from backend.parallel.open_group import open_group
from backend.surgery.describe import trace_model
from backend.surgery.load import load_model, read_config
from backend.surgery.model import ServedModel
from tests.conformance.architectures.messages import Job, Reply
from tests.conformance.architectures.staged import StagedModel, even_spans
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.decode import decode

_CHUNK = 7  # no prompt's length is a multiple of it, and none of the windows
_SECONDS = 30.0


def answer(job: Job, rank: int, folder: Path) -> Reply:
    """What this rank's model answers; a refusal or an error as a reply, too."""
    try:
        return _answer(job, rank, folder)
    except UnsupportedModelError as error:
        return Reply("refused", error.why)
    except Exception:  # noqa: BLE001 - an error of one type must not end the matrix
        return Reply("failed", traceback.format_exc())


def _answer(job: Job, rank: int, folder: Path) -> Reply:
    size = len(job.attention)
    if size == 1:
        return _answer_in(job, None, None)
    group = open_group(
        rank, size, torch.device("cpu"), folder, generation=job.generation, limit=_SECONDS, only=("gloo",)
    )
    try:
        return _answer_in(job, Division(rank, job.attention, job.mlp, job.experts), group)
    finally:
        group.close()


def _answer_in(job: Job, division: Division | None, group: Group | None) -> Reply:
    model = _load(job, division, group)
    tokens = decode(model, [list(prompt) for prompt in job.prompts], job.count, chunk=_CHUNK, group=group)
    logits = [_logits(model, torch.tensor(prompt)).numpy().tobytes() for prompt in job.prompts]
    first = division is None or division.rank == 0  # the others have zeros
    return Reply("answered", tokens=tokens, logits=logits if first else [], held=model.weights_bytes)


def _load(job: Job, division: Division | None, group: Group | None) -> ServedModel | StagedModel:
    def load(span: LayerSpan | None) -> ServedModel:
        return load_model(
            job.files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None,
            division=division, group=group, span=span,
        )  # fmt: skip

    if job.stages == 1:
        return load(None)
    facts = trace_model(read_config(job.files))[0]
    stages = [load(span) for span in even_spans(facts, job.stages)]
    layers = tuple(layer for stage in stages for layer in stage.facts.layers)
    heads = tuple(heads for stage in stages for heads in stage.facts.heads)
    return StagedModel(stages, replace(facts, layers=layers, heads=heads))


def _logits(model: ServedModel | StagedModel, tokens: Tensor) -> Tensor:
    """[T, vocabulary] of all tokens in one pass."""
    length = tokens.shape[0]
    every = torch.arange(length)
    context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, length)])
    return model.forward(tokens, every, torch.full((length,), length), every, context)


def main(rank: int, descriptor: int, folder: Path) -> None:
    torch.set_num_threads(1)
    connection = Connection(descriptor)
    while True:
        try:
            job = msgspec.msgpack.decode(connection.recv_bytes(), type=Job)
        except EOFError:
            return
        connection.send_bytes(msgspec.msgpack.encode(answer(job, rank, folder)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
