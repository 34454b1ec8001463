"""FusedStack: a model's decoder layers as one program of kernel jobs, for layers of the plain pre-norm kind.

    x += output(attend(turn(qkv(norm(x)))))        x += down(gated(gate_up(norm(x))))

A layer of a small model is eleven jobs of a few microseconds; called one by one, the interpreter costs as much as they
do. The layers themselves stay inside as the reference, and as the way for any other context or device.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor, nn

from backend.paged_context import PagedContext
from backend.surgery.processor_kernels import ITEM_ROWS, ITEM_TOKENS, add_item, gated_item, norm_item, turn_item
from backend.surgery.stacked_layer import StackedLayer
from kvcache.attention.processor import STEP, ProcessorKernel
from kvcache.attention.processor_items import attend_item
from kvcache.attention.processor_merge import merge_item
from kvcache.attention.processor_words import WORDS
from kvcache.attention.processor_write import write_item
from quant.cpu.linear import product_item
from quant.cpu.program import Program
from quant.cpu.team import Team

JOBS = (
    norm_item, product_item, turn_item, write_item, attend_item, merge_item, product_item,
    norm_item, product_item, gated_item, product_item,
)  # fmt: skip
NORM, QKV, TURN, WRITE, ATTEND, MERGE, OUTPUT, SECOND_NORM, GATE_UP, GATED, DOWN = range(len(JOBS))
# Attention's jobs have the most.
JOB_WORDS = WORDS
SMALLEST_BUFFER = 16


class FusedStack(nn.Module):
    """Stands in a model's list of layers as its only one."""

    def __init__(self, layers: list[StackedLayer], team: Team) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer.module for layer in layers])
        self._parts, self._team = layers, team
        self._program = Program(team, [*JOBS * len(layers), add_item], JOB_WORDS)
        # [layers, jobs of a layer, words]: a view, the last addition left out.
        self._words = self._program.words[:-1].reshape(len(layers), len(JOBS), JOB_WORDS)
        self._items = self._program.items[:-1].reshape(len(layers), len(JOBS))
        self._rows = 0
        self._memory: dict[str, Tensor] = {}
        self._placed: object = None

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        context: Any,
        **others: Any,
    ) -> Tensor:
        """hidden_states: [1, T, hidden] -> the same shape; valid until the next pass."""
        if not self._runs_in_place(context):
            for layer in self.layers:
                hidden_states = layer(hidden_states, position_embeddings=position_embeddings, context=context, **others)
            return hidden_states
        tokens = hidden_states.shape[1]
        self._place(hidden_states.dtype, tokens, context)
        cos, sin = (table[0].contiguous() for table in position_embeddings)
        self._step(tokens, cos, sin, context)
        x = self._memory["x"][:tokens]
        x.copy_(hidden_states[0])
        self._run(self._memory["back"][:tokens])
        return x.unsqueeze(0)

    def _run(self, back: Tensor) -> None:
        """All jobs; where ranks add up what a half layer computed, [T, hidden], in pieces that end there."""
        first = 0
        for index, part in enumerate(self._parts):
            for job, finish in zip((OUTPUT, DOWN), part.sums, strict=True):
                if finish is not None:
                    behind = index * len(JOBS) + job + 1
                    self._program.run(first, behind)
                    finish(back)
                    first = behind
        self._program.run(first)

    def _runs_in_place(self, context: Any) -> bool:
        return isinstance(context, PagedContext) and all(
            isinstance(context.kernels[part.slot], ProcessorKernel) for part in self._parts
        )

    def _step(self, tokens: int, cos: Tensor, sin: Tensor, context: PagedContext) -> None:
        """Fills in what changes from step to step."""
        words, items = self._words, self._items
        lines = -(-tokens // ITEM_ROWS)
        for job in (NORM, SECOND_NORM, GATED):
            words[:, job, 4], items[:, job] = tokens, lines
        for job, linear in self._parts[0].linears(QKV=QKV, OUTPUT=OUTPUT, GATE_UP=GATE_UP, DOWN=DOWN):
            words[:, job, 3], items[:, job] = tokens, linear.items(tokens)
        words[:, TURN, 3], items[:, TURN] = tokens, -(-tokens // ITEM_TOKENS)
        words[:, TURN, 7:10] = cos.data_ptr(), sin.data_ptr(), cos.stride(0) * cos.element_size()
        for kind, layers in self._kinds.items():
            prepared, kernel = context.prepared[kind], self._kernels[kind]
            steps = {
                WRITE: kernel.write_step(prepared),
                ATTEND: kernel.attend_step(prepared),
                MERGE: kernel.merge_step(prepared),
            }
            for job, step in steps.items():
                words[layers, job, STEP], items[layers, job] = step.words, step.items
        self._program.words[-1, 4], self._program.items[-1] = tokens, lines

    def _place(self, dtype: torch.dtype, tokens: int, context: PagedContext) -> None:
        """Allocates buffers for so many rows and fills in every address that stays; once, and when more are needed."""
        if tokens <= self._rows and self._placed is context.layers:
            return
        self._rows = max(self._rows, SMALLEST_BUFFER, 1 << (tokens - 1).bit_length())
        self._placed = context.layers
        widths = self._parts[0].widths()
        self._memory = {name: torch.empty(self._rows, width, dtype=dtype) for name, width in widths.items()}
        kinds: dict[int, list[int]] = {}
        for index, part in enumerate(self._parts):
            kinds.setdefault(context.kinds[part.slot], []).append(index)
            self._place_layer(self._words[index], part, context)
        self._words[0, NORM, 7] = 0
        self._kinds = {kind: numpy.array(layers) for kind, layers in kinds.items()}
        self._kernels: dict[int, Any] = {
            kind: context.kernels[self._parts[layers[0]].slot] for kind, layers in kinds.items()
        }
        last = self._program.words[-1]
        last[[0, 1, 5, 7]] = self._words[0, NORM, 0], self._at("x"), self._words[0, NORM, 5], self._at("back")

    def _at(self, name: str) -> int:
        return self._memory[name].data_ptr()

    def _stride(self, name: str) -> int:
        return self._memory[name].stride(0) * self._memory[name].element_size()

    def _place_layer(self, words: Any, part: StackedLayer, context: PagedContext) -> None:
        paired = int(self._memory["x"].dtype == torch.bfloat16)
        norms = ((NORM, part.norms[0]), (SECOND_NORM, part.norms[1]))
        for job, norm in norms:
            words[job, : len(norm.words)] = norm.words
            # Each norm first adds what the half layer before it computed.
            words[job, [0, 1, 3, 7]] = paired, self._at("x"), self._at("normed"), self._at("back")
        sources = {QKV: "normed", OUTPUT: "attended", GATE_UP: "normed", DOWN: "gated"}
        targets = {QKV: "product", OUTPUT: "back", GATE_UP: "gate_up", DOWN: "back"}
        for job, linear in part.linears(QKV=QKV, OUTPUT=OUTPUT, GATE_UP=GATE_UP, DOWN=DOWN):
            words[job, : len(linear.words)] = linear.words
            words[job, [0, 1, 2, 7, 8]] = (
                paired, self._at(sources[job]), self._stride(sources[job]), self._at(targets[job]),
                self._stride(targets[job]),
            )  # fmt: skip
        element = 2 if paired else 4
        stride, product = self._stride("product"), self._at("product")
        words[TURN, :7] = paired, product, stride, 0, part.heads, part.kv_heads, part.head_size // 32
        words[TURN, 10:14] = part.head_norm_words
        shape = context.prepared[context.kinds[part.slot]].shape
        kernel: Any = context.kernels[part.slot]
        key = product + part.heads * part.head_size * element
        for job in (WRITE, ATTEND, MERGE):
            kernel.place(words[job], shape, context.layers[part.slot], part.scaling, part.softcap)
        words[WRITE, 1:5] = key, stride, key + part.kv_heads * part.head_size * element, stride
        words[[ATTEND, MERGE], 1:5] = product, stride, self._at("attended"), self._stride("attended")
        words[GATED, :6] = part.silu, paired, self._at("gate_up"), self._at("gated"), 0, part.width // 16
