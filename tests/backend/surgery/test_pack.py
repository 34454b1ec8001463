"""Packing a model: stored weights and fast kernels in place, no second copy left behind, tied embeddings still tied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backend.surgery.linears import served_linears
from backend.surgery.load import load_model
from backend.surgery.norm import ServedRMSNorm
from backend.surgery.pack import TiedEmbedding, pack_model
from backend.surgery.processor_kernels import RowNorm
from quant.cpu.linear import PackedLinear
from quant.cpu.team import Team
from quant.weight_format import WEIGHT_FORMATS
from tests.fakes.attention_context import PlainAttentionContext, SequenceCache
from tests.fakes.tiny_models import make_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_model_computes_the_same(dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint("llama", tmp_path_factory.mktemp("llama"))
    model = load_model(files, dtype=dtype, device=torch.device("cpu"), on_progress=lambda done, total: None)
    tokens = torch.arange(1, 9)

    def logits() -> torch.Tensor:
        context = PlainAttentionContext(model.facts, [(SequenceCache(), 0, 8)])
        return model.forward(tokens, torch.arange(8), torch.full((8,), 8), torch.tensor([7]), context)

    before, plain_bytes = logits(), model.weights_bytes
    packed = pack_model(model, WEIGHT_FORMATS["model"], team=Team(1))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(logits(), before, rtol=tolerance, atol=tolerance * before.abs().max().item())
    for _, linear in served_linears(packed.module):
        assert isinstance(linear.kernel, PackedLinear)
        assert linear.weight.numel() == 0
    norms = [module for module in packed.module.modules() if isinstance(module, ServedRMSNorm)]
    assert norms
    assert all(isinstance(norm.kernel, RowNorm) for norm in norms)
    # Beside the weights there are the products' starts, 4 bytes a column.
    assert plain_bytes <= packed.weights_bytes <= plain_bytes * 1.2


def test_a_tied_table_is_kept_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    files = make_checkpoint("llama-tied", tmp_path_factory.mktemp("tied"))
    model = load_model(files, dtype=torch.float32, device=torch.device("cpu"), on_progress=lambda done, total: None)
    module: Any = model.module
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight
    table = module.get_input_embeddings().weight.clone()
    packed = pack_model(model, WEIGHT_FORMATS["model"], team=Team(1))
    embeddings = [module for module in packed.module.modules() if isinstance(module, TiedEmbedding)]
    assert len(embeddings) == 1
    index = torch.tensor([[3, 0, 127]])
    assert torch.equal(embeddings[0](index), table[index])
