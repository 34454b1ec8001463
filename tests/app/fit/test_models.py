"""The list of known models: keys and values by the formula, windows and states counted as what they keep."""

from __future__ import annotations

from dataclasses import replace

from app.fit.models import as_table, model_row, model_rows
from backend.library.model_table import catalogue, find_in_catalogue
from backend.planner.fit.known_model import KnownModel, StateLayers
from kvcache.layout import Keeps, LayerCache
from tests.fakes.models import LLAMA_70B, dense

GIB = 1 << 30


def test_a_70b_keeps_40_gib_at_128k() -> None:
    row = model_row(KnownModel("llama", LLAMA_70B), 131_072)
    assert row.kv_bytes == 40 * GIB
    # 130 bytes of 256 for a head of 128: a scale of two bytes each.
    assert row.kv_bytes_8 == 40 * GIB * 130 // 256


def test_windows_stop_and_states_do_not_grow() -> None:
    layers = (LayerCache(Keeps.SLIDING, 1024, 8, 128, 128),) * 2
    facts = replace(dense(2, 1024, 8, 8, 4096, 32000), layers=layers)
    model = KnownModel("short", facts, states=(StateLayers(3, 1000),))
    assert model_row(model, 8192).kv_bytes == model_row(model, 1024).kv_bytes == 2 * 1024 * 2 * 8 * 128 * 2 + 3000


def test_the_catalogue_is_listed_in_80_columns_by_names_that_are_found() -> None:
    rows = model_rows([model.known(model.id.partition(" ")[0]) for model in catalogue()])
    text = as_table(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[0].rstrip("*") for line in text.splitlines()[1 : len(rows) + 1]] == [row.name for row in rows]
    assert [row.name for row in rows if find_in_catalogue(row.name) is None] == []


def test_long_contexts_are_told_in_gib() -> None:
    assert "KV GiB" in as_table([model_row(KnownModel("llama", LLAMA_70B), 131_072)])
    assert "KV MiB" in as_table([model_row(KnownModel("llama", LLAMA_70B), 1024)])


def test_what_is_not_served_is_marked() -> None:
    row = model_row(KnownModel("odd", LLAMA_70B, unserved="This version does not."), 1024)
    assert as_table([row]).splitlines()[1].startswith("odd* ")
