"""The program of one rank of the matrix: loads its share of model after model, and answers prompts with the others."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from backend.errors import UnsupportedModelError
from backend.parallel.group import Group
from backend.surgery.context import AttentionContext
from backend.surgery.load import load_model
from backend.surgery.model import ServedModel
from tests.conformance.architectures.messages import Job, Reply
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.decode import decode

_CHUNK = 7  # no prompt's length is a multiple of it, and none of the windows


@dataclass(frozen=True)
class SharedModel(ServedModel):
    """A rank's model whose logits every rank gets, so that all choose the same tokens."""

    group: Group | None = None

    def forward(
        self, tokens: Tensor, positions: Tensor, rope_lengths: Tensor, rows: Tensor, context: AttentionContext
    ) -> Tensor:
        logits = super().forward(tokens, positions, rope_lengths, rows, context).clone()
        if self.group is not None:
            self.group.all_reduce(logits)
        return logits


def answer(job: Job, rank: int, folder: Path) -> Reply:
    """What this rank's model answers; a refusal or an error as a reply, too."""
    try:
        return _answer(job, rank, folder)
    except UnsupportedModelError as error:
        return Reply("refused", error.why)
    except Exception:  # noqa: BLE001 - an error of one type must not end the matrix
        return Reply("failed", traceback.format_exc())


def _answer(job: Job, rank: int, folder: Path) -> Reply:
    served = load_model(
        job.files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None
    )
    model = SharedModel(**{field.name: getattr(served, field.name) for field in fields(ServedModel)})
    tokens = decode(model, [list(prompt) for prompt in job.prompts], job.count, chunk=_CHUNK)
    logits = [_logits(model, torch.tensor(prompt)).numpy().tobytes() for prompt in job.prompts]
    return Reply("answered", tokens=tokens, logits=logits, held=served.weights_bytes)


def _logits(model: ServedModel, tokens: Tensor) -> Tensor:
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
