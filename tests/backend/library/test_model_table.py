"""The catalogue: found by the names that people use, with the packing that a name tells of."""

from __future__ import annotations

import pytest

from backend.library.architectures import causal_language_models
from backend.library.model_table import (
    catalogue,
    find_in_catalogue,
    known_from_catalogue,
    nearest_names,
    search_catalogue,
)
from backend.planner.fit.packings import packing


def test_every_row_has_a_source_and_a_packing() -> None:
    ids = [model.id for model in catalogue()]
    assert len(ids) == len(set(ids)) >= 90
    for model in catalogue():
        assert model.source.startswith(("https://", "http", "vllm", "llama")) or len(model.source) > 10, model.id
        assert packing(model.packing)
        assert model.label
        assert model.parameters is not None
        assert model.active is not None
        assert 0 < model.active <= model.parameters


def test_every_name_leads_to_its_own_row() -> None:
    for model in catalogue():
        for name in (model.id, model.id.upper(), f"hf://{model.id}", *model.aliases):
            found = find_in_catalogue(name)
            assert found is not None
            assert found.id == model.id, name


@pytest.mark.parametrize(
    ("name", "id", "stored"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B", "model"),
        ("llama-3.1-8b", "meta-llama/Meta-Llama-3.1-8B", "model"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "meta-llama/Llama-3.3-70B-Instruct", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "meta-llama/Meta-Llama-3.1-8B", "int4"),
        ("neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", "meta-llama/Meta-Llama-3.1-70B", "int8"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "nvidia/Llama-3.1-70B-Instruct-FP8", "fp8-tensor"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "meta-llama/Meta-Llama-3.1-8B", "fp8-tensor"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B", "awq"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B", "gptq8"),
        ("Qwen/Qwen3-235B-A22B-FP8", "Qwen/Qwen3-235B-A22B-FP8", "fp8-block"),
        ("Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-32B-FP8", "fp8-block"),
        ("qwen3-235b-a22b", "Qwen/Qwen3-235B-A22B", "model"),
        ("TheBloke/Mixtral-8x7B-Instruct-v0.1-AWQ", "mistralai/Mixtral-8x7B-v0.1", "awq"),
        ("unsloth/qwen2.5-0.5b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-0.5B", "nf4-double"),
        ("openai/gpt-oss-20b@main", "openai/gpt-oss-20b", "mxfp4"),
        ("bartowski/Llama-3.2-3B-Instruct-GGUF:Llama-3.2-3B-Instruct-Q4_K_M.gguf", "meta-llama/Llama-3.2-3B",
         "gguf:Q4_K_M"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Instruct-2507", "model"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "Qwen/Qwen2.5-14B", "model"),
    ],
)  # fmt: skip
def test_names_as_people_write_them(name: str, id: str, stored: str) -> None:
    found = find_in_catalogue(name)
    assert found is not None
    assert (found.id, found.packing) == (id, stored)
    known = found.known(name)
    assert (known.name, known.stored.packing) == (name, stored)
    assert id in known.source


@pytest.mark.parametrize("name", ["nobody/nothing-9B", "llama", "8B", "", "instruct", "meta-llama/Llama-3.1"])
def test_a_name_that_is_none_finds_nothing(name: str) -> None:
    assert find_in_catalogue(name) is None
    assert known_from_catalogue(name) is None


def test_names_that_look_alike() -> None:
    assert "meta-llama/Meta-Llama-3.1-8B" in nearest_names("meta-lama/Meta-Lama-3.1-8B")
    assert nearest_names("zzzzzz") == ()


def test_searching() -> None:
    assert len(search_catalogue("")) == len(catalogue())
    found = [model.id for model in search_catalogue("llama 70b")]
    assert "meta-llama/Llama-3.3-70B-Instruct" in found
    assert all(
        "70b" in " ".join((one, *model.aliases)).lower() for one in found for model in catalogue() if model.id == one
    )
    # An alias is a name too.
    assert "Qwen/Qwen2.5-14B" in [model.id for model in search_catalogue("distill qwen 14b")]
    assert search_catalogue("no such model") == ()


def test_vision_stays_outside_the_text_model() -> None:
    known = known_from_catalogue("google/gemma-3-27b-it")
    assert known is not None
    # The hub counts 27,432,406,640 parameters in it.
    assert known.facts.parameters + known.other_parameters == 27_432_406_640


def test_what_cannot_be_served_says_so() -> None:
    known = known_from_catalogue("Qwen/Qwen3.5-27B")
    assert known is not None
    assert "recurrent state" in known.unserved
    for name, served in (
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", True),
        ("RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8", False),
        ("openai/gpt-oss-20b", True),
        ("moonshotai/Kimi-K2.5", False),
        ("google/gemma-3-27b-it", True),
    ):
        known = known_from_catalogue(name)
        assert known is not None
        assert (known.unserved == "") is served, name


def test_rows_that_are_served_are_of_kinds_that_transformers_has() -> None:
    classes = set(causal_language_models().values())
    # Their text models are served, and have classes of their own.
    classes |= {"Llama4ForConditionalGeneration"}
    for model in catalogue():
        if not model.unserved:
            assert model.dimensions.arch in classes, model.id
