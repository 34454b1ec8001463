"""vLLM's accounting: terms add up, the tightest stage decides, and more of anything never makes it fit less."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.errors import SettingError
from backend.library.model_table import catalogue, known_from_catalogue
from backend.planner.fit.known_model import KnownModel
from backend.planner.vllm.account import account
from backend.planner.vllm.deployment import VllmDeployment, default_deployment
from backend.planner.vllm.division import refusal

GIB = 1 << 30
_LLAMA = "meta-llama/Meta-Llama-3.1-8B"
_VERSIONS = ((0, 5, 0), (0, 6, 6), (0, 7, 3), (0, 10, 0), (0, 16, 0), (0, 19, 0), (0, 22, 0))
_ORDER = ("too large", "fragile", "fits", "roomy")


def _model(name: str) -> KnownModel:
    model = known_from_catalogue(name)
    assert model is not None
    return model


def _on_h100(model: KnownModel, **options: object) -> VllmDeployment:
    usual = default_deployment(
        model,
        gpu="NVIDIA H100 80GB HBM3",
        memory=int(79.19 * GIB),
        capability=(9, 0),
        version=(0, 19, 0),
        utilization=0.9,
        max_model_len=8192,
    )
    return replace(usual, **options)  # pyright: ignore[reportArgumentType]


def test_the_pool_is_what_the_budget_leaves() -> None:
    deployment = _on_h100(_model(_LLAMA))
    (stage,) = account(_model(_LLAMA), deployment).stages
    assert stage.weights + stage.activations + stage.non_torch + stage.kv == deployment.budget
    assert not stage.graphs_counted


def test_graphs_take_of_the_pool_from_0_21_on() -> None:
    model = _model(_LLAMA)
    before = account(model, _on_h100(model, version=(0, 20, 0))).stages[0]
    after = account(model, _on_h100(model, version=(0, 21, 0))).stages[0]
    assert before.kv - after.kv == after.graphs > 0
    eager = account(model, _on_h100(model, version=(0, 21, 0), enforce_eager=True)).stages[0]
    assert eager.kv == before.kv


def test_the_stage_with_the_fewest_blocks_decides() -> None:
    model = _model(_LLAMA)
    memory = account(model, _on_h100(model, pp=4))
    pools = [stage.kv for stage in memory.stages]
    assert pools.index(min(pools)) == 3
    assert memory.stages[3].activations > memory.stages[1].activations
    assert memory.blocks == min(pools) // (8 * 16 * 4096)
    assert memory.kv_tokens == memory.blocks * 16


def test_weights_that_do_not_load() -> None:
    model = _model("meta-llama/Meta-Llama-3.1-70B")
    verdict = account(model, _on_h100(model)).verdict
    assert (verdict.kind, verdict.term) == ("too large", "weights")
    assert verdict.needed > verdict.available
    assert "do not load" in verdict.sentence


def test_nothing_left_after_profiling() -> None:
    model = _model("meta-llama/Meta-Llama-3.1-70B")
    memory = account(model, _on_h100(model, packing="fp8", version=(0, 16, 0)))
    assert memory.stages[0].kv < 0
    assert memory.blocks == memory.kv_tokens == memory.largest_context == 0
    assert (memory.verdict.kind, memory.verdict.term) == ("too large", "activations")


def test_a_pool_smaller_than_one_context_names_the_largest() -> None:
    model = _model(_LLAMA)
    deployment = _on_h100(model, memory=24 * GIB, gpu="RTX 4090", capability=(8, 9), max_model_len=131072)
    memory = account(model, replace(deployment, max_num_seqs=256, max_num_batched_tokens=2048))
    assert (memory.verdict.kind, memory.verdict.term) == ("too large", "kv")
    assert memory.verdict.needed == 16 * GIB == memory.needed
    assert 0 < memory.largest_context < 131072
    assert f"{memory.largest_context:,}" in memory.verdict.sentence
    smaller = replace(deployment, max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=memory.largest_context)
    assert account(model, smaller).verdict.kind != "too large"


def test_another_process_holds_memory() -> None:
    model = _model(_LLAMA)
    verdict = account(model, _on_h100(model, held=20 * GIB)).verdict
    assert (verdict.kind, verdict.term) == ("too large", "held")
    assert "20 GiB" in verdict.sentence


def test_boots_and_has_too_little_left_under_load() -> None:
    model = _model("openai/gpt-oss-20b")
    assert account(model, _on_h100(model, utilization=0.98)).verdict.kind == "fragile"
    assert account(model, _on_h100(model, utilization=0.9)).verdict.kind == "roomy"


@pytest.mark.parametrize("name", [row.id for row in catalogue()])
def test_every_known_model_in_every_version(name: str) -> None:
    model = _model(name)
    for version in _VERSIONS:
        for tp, pp in ((1, 1), (8, 1), (2, 2)):
            memory = account(model, _on_h100(model, version=version, tp=tp, pp=pp))
            assert len(memory.stages) == pp
            assert min(stage.weights for stage in memory.stages) > 0
            assert (memory.concurrency >= 1) == (memory.largest_context == 8192)
            assert memory.verdict.sentence


@pytest.mark.parametrize("name", [_LLAMA, "google/gemma-3-27b-it", "openai/gpt-oss-120b", "Qwen/Qwen3.5-27B"])
def test_more_memory_and_less_asked_never_fit_less(name: str) -> None:
    model = _model(name)
    kinds = [_rank(model, memory=gib * GIB) for gib in range(72, 200, 8)]
    assert kinds == sorted(kinds)
    lengths = [_rank(model, max_model_len=length) for length in (131072, 32768, 8192, 2048)]
    assert lengths == sorted(lengths)
    assert _rank(model, kv_dtype="fp8") >= _rank(model)


def _rank(model: KnownModel, **options: object) -> int:
    return _ORDER.index(account(model, _on_h100(model, **options)).verdict.kind)


def test_a_packing_that_nobody_knows_is_refused() -> None:
    model = _model(_LLAMA)
    with pytest.raises(SettingError):
        account(model, _on_h100(model, packing="int3"))


@pytest.mark.parametrize(
    ("name", "tp", "word"), [(_LLAMA, 3, "query heads"), (_LLAMA, 16, ""), ("microsoft/phi-4", 4, "KV heads")]
)
def test_ranks_that_vllm_refuses(name: str, tp: int, word: str) -> None:
    told = refusal(_model(name), _on_h100(_model(name), tp=tp))
    assert bool(told) == bool(word)
    assert word in told


def test_modules_that_a_checkpoint_leaves_in_its_dtype() -> None:
    model = _model(_LLAMA)

    def weights(*excluded: str) -> int:
        known = replace(model, stored=replace(model.stored, excluded=excluded))
        return account(known, _on_h100(model, packing="fp8")).stages[0].weights

    attention = sum(model.facts.query_parameters) + sum(model.facts.key_parameters)
    assert weights("lm_head") == weights()
    assert weights("re:.*self_attn.*") - weights() == pytest.approx(attention, rel=0.01)
    mlp = 3 * 4096 * 14336
    assert weights("model.layers.0.mlp.up_proj", "layers.31.mlp") - weights() == pytest.approx(2 * mlp, rel=0.01)


def test_projections_to_latents_are_whole_and_all_else_is_divided() -> None:
    model = _model("deepseek-ai/DeepSeek-V2-Lite")
    one, eight = (account(model, _on_h100(model, tp=tp)).stages[0].weights for tp in (1, 8))
    layers, hidden, latent = 27, 2048, 512 + 64
    whole = layers * latent * hidden + 26 * 64 * hidden
    rope = 2 * model.rope_elements
    assert eight - rope == pytest.approx((one - rope - 2 * whole) / 8 + 2 * whole, rel=0.005)
