"""A namespace changes with all that a page's bytes depend on, and with nothing else; keys of people stay apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backend.cache_identity import (
    HEAD_BYTES,
    SAMPLE_BYTES,
    SAMPLES,
    namespace,
    owner_tag,
    page_secret,
    salt,
    weights_identity,
)
from backend.library.files import ModelFiles
from backend.planner.plan import Rank
from kvcache.layout import CacheLayout, Keeps, LayerCache, build_layout
from quant.kv_format import FP8, INT8, KVFormats
from tests.fakes.plans import plan

LAYERS = (LayerCache(Keeps.FULL, None, 2, 64, 64), LayerCache(Keeps.SLIDING, 128, 2, 64, 64))
ORDERS = ("plain", "tiles")
TIME = 1_700_000_000_000_000_000

PLAN = plan()


def layout(**options: Any) -> CacheLayout:
    return build_layout(LAYERS, options.pop("model_bytes", 2), **options)


def write(path: Path, size: int, change: int | None = None) -> None:
    """A file that has other bytes at each place, one of them changed; always of the same time."""
    data = bytearray(i * 7 % 251 for i in range(251)) * (size // 251 + 1)
    data = data[:size]
    if change is not None:
        data[change] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(TIME, TIME))


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    write(tmp_path / "one.safetensors", 1000)
    write(tmp_path / "two.safetensors", 2000)
    (tmp_path / "config.json").write_text('{"rope_theta": 10000}')
    weights = (str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors"))
    return ModelFiles(name="a model", format="safetensors", weights=weights, folder=str(tmp_path), bytes=3000)


def test_the_same_engine_has_the_same_namespace(files: ModelFiles) -> None:
    first = namespace(files, PLAN, layout(), ORDERS)
    assert len(first) == 32
    assert namespace(files, PLAN, layout(), list(ORDERS)) == first
    # What only decides how much fits, or what the model is called, changes no page.
    other = replace(PLAN, pages=7, threads=1, max_context=8192, reasons=("because",), model="alias")
    assert namespace(replace(files, name="alias", weights=files.weights[::-1]), other, layout(), ORDERS) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda files: namespace(files, replace(PLAN, dtype="float32"), layout(), ORDERS),
        lambda files: namespace(files, replace(PLAN, kv_format="int8"), layout(), ORDERS),
        lambda files: namespace(files, replace(PLAN, weight_format="int8"), layout(), ORDERS),
        lambda files: namespace(files, replace(PLAN, architecture="Qwen3ForCausalLM"), layout(), ORDERS),
        lambda files: namespace(files, replace(PLAN, ranks=(Rank(0, "cuda:0", ()),)), layout(), ORDERS),
        lambda files: namespace(files, PLAN, layout(page_tokens=32), ORDERS),
        lambda files: namespace(files, PLAN, layout(model_bytes=4), ORDERS),
        lambda files: namespace(files, PLAN, layout(formats=KVFormats(INT8, FP8)), ORDERS),
        lambda files: namespace(files, PLAN, layout(formats=KVFormats(FP8, INT8)), ORDERS),
        lambda files: namespace(files, PLAN, build_layout(LAYERS[:1] * 2, 2), ORDERS),
        lambda files: namespace(files, PLAN, layout(), ("tiles", "plain")),
        lambda files: namespace(replace(files, weights=files.weights[:1]), PLAN, layout(), ORDERS),
    ],
)
def test_each_thing_that_a_page_depends_on_changes_it(files: ModelFiles, change: Callable[[ModelFiles], bytes]) -> None:
    assert change(files) != namespace(files, PLAN, layout(), ORDERS)


def test_rope_settings_and_weights_change_it(files: ModelFiles) -> None:
    seen = {namespace(files, PLAN, layout(), ORDERS)}
    (Path(files.folder) / "config.json").write_text('{"rope_theta": 50000}')
    seen.add(namespace(files, PLAN, layout(), ORDERS))
    write(Path(files.weights[0]), 1000, change=999)
    seen.add(namespace(files, PLAN, layout(), ORDERS))
    write(Path(files.weights[0]), 999)
    seen.add(namespace(files, PLAN, layout(), ORDERS))
    os.utime(files.weights[0], ns=(TIME, TIME + 1))
    seen.add(namespace(files, PLAN, layout(), ORDERS))
    shutil.move(files.weights[0], f"{files.folder}/renamed.safetensors")
    renamed = replace(files, weights=(f"{files.folder}/renamed.safetensors", files.weights[1]))
    seen.add(namespace(renamed, PLAN, layout(), ORDERS))
    assert len(seen) == 6


@pytest.mark.parametrize("place", [0, HEAD_BYTES - 1, HEAD_BYTES, -1, HEAD_BYTES + SAMPLE_BYTES - 1])
@pytest.mark.parametrize(
    "size", [HEAD_BYTES + SAMPLE_BYTES, HEAD_BYTES + SAMPLES * SAMPLE_BYTES + 1], ids=["read whole", "sampled"]
)
def test_what_is_read_of_a_large_file_counts(tmp_path: Path, size: int, place: int) -> None:
    path = tmp_path / "model.safetensors"
    files = ModelFiles(name="", format="safetensors", weights=(str(path),), folder=str(tmp_path), bytes=size)
    write(path, size)
    before = weights_identity(files)
    write(path, size, change=place)
    assert weights_identity(files) != before


def test_secrets_of_each_purpose_and_key_differ() -> None:
    secret = b"s" * 32
    made = [
        page_secret(secret),
        salt(secret, "a"),
        salt(secret, "b"),
        owner_tag(secret, "a"),
        owner_tag(secret, "b"),
        page_secret(b"t" * 32),
        salt(b"t" * 32, "a"),
    ]
    assert len({one[:16] for one in made}) == len(made)
    assert [len(one) for one in made] == [32, 32, 32, 16, 16, 32, 32]
    assert salt(secret, "a") == salt(secret, "a")


def test_it_loads_no_torch() -> None:
    code = (
        "import sys, backend.cache_identity, kvcache.tiers.disk, kvcache.tiers.folder; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
