"""From names to facts: what is here, what the hub tells by ranges, what the catalogue knows; and each error's fix."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from backend.errors import BrokenModelError, DownloadError, ModelAccessError, ModelNotFoundError
from backend.library import config_facts
from backend.library.facts_child import facts_of
from backend.library.folders import INDEX
from backend.library.known_models import known_model
from backend.planner.fit.known_model import KnownModel
from backend.surgery.describe import describe
from kvcache.layout import Keeps
from tests.fakes.hub import COMMIT, FakeHub, FakeRepository

NAME = "maker/tiny"
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own, and the child's work done in this process, which has torch already."""
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config_facts, "_ask_child", lambda name, text: facts_of(json.loads(text)))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield fake


def checkpoint(extra: dict[str, torch.Tensor] | None = None, **changes: Any) -> dict[str, bytes]:
    """config.json, and weights of 8 MB in two shards with an index."""
    config = transformers.LlamaConfig(**(SIZES | changes))
    model = AutoModelForCausalLM.from_config(config)
    tensors = {name: one.detach().to(torch.bfloat16) for name, one in model.state_dict().items()} | (extra or {})
    names = sorted(tensors)
    shards = {
        f"model-0000{index + 1}-of-00002.safetensors": {name: tensors[name].contiguous() for name in names[index::2]}
        for index in range(2)
    }
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    files = {shard: safetensors.torch.save(inside) for shard, inside in shards.items()}
    small = {"config.json": config.to_json_string(use_diff=False).encode(), INDEX: json.dumps(index).encode()}
    return small | files


def repository(files: dict[str, bytes], **changes: Any) -> FakeRepository:
    large = frozenset(name for name in files if name.endswith((".safetensors", ".gguf")))
    return FakeRepository(files=files | {"README.md": b"read"}, large=large, **changes)


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def facts() -> Any:
    return describe(transformers.LlamaConfig(**SIZES))


def test_a_folder_is_known_by_config_and_headers(tmp_path: Path) -> None:
    files = checkpoint()
    known = known_model(str(write(files, tmp_path / "model")))
    assert known.facts == facts()
    assert known.stored.bytes == 2 * known.facts.parameters
    assert (known.stored.packing, known.exact, known.unserved, known.other_parameters) == ("model", True, "", 0)
    assert "headers" in known.source
    # One table of 512 positions for heads of 32.
    assert known.rope_elements == 512 * 32


def test_a_config_alone(tmp_path: Path) -> None:
    folder = write({"config.json": checkpoint()["config.json"]}, tmp_path / "model")
    for name in (str(folder), str(folder / "config.json")):
        known = known_model(name)
        assert (known.name, known.facts, known.stored.bytes) == (name, facts(), None)
        assert "config alone" in known.source


def test_the_hub_is_asked_for_ranges_only(hub: FakeHub) -> None:
    files = checkpoint()
    hub.repositories[NAME] = repository(files)
    known = known_model(NAME)
    assert known.facts == facts()
    assert known.stored.bytes == 2 * known.facts.parameters
    assert "hub" in known.source
    weights = [(name, asked, count) for name, asked, count in hub.sent if name.endswith(".safetensors")]
    assert sorted({name for name, _, _ in weights}) == [name for name in sorted(files) if name.endswith(".safetensors")]
    assert all(asked == "bytes=0-65535" for _, asked, _ in weights)
    assert sum(count for _, _, count in weights) == 2 * 65_536 < sum(map(len, files.values())) / 20
    assert {name for name, _, _ in hub.sent} - set(files) == set()


def test_a_server_without_ranges_is_cut_off(hub: FakeHub) -> None:
    hub.repositories[NAME], hub.ignore_range = repository(checkpoint()), True
    assert known_model(NAME).facts == facts()


def test_a_long_header_takes_one_more_range(hub: FakeHub) -> None:
    many = {f"visual.blocks.{index}.with_a_long_name_{'x' * 80}": torch.zeros(2) for index in range(900)}
    hub.repositories[NAME] = repository(checkpoint(many))
    known = known_model(NAME)
    assert known.other_parameters == 1800
    assert known.facts == facts()
    lengths = {name: int.from_bytes(hub.repositories[NAME].files[name][:8], "little") + 8 for name, _, _ in hub.sent
               if name.endswith(".safetensors")}  # fmt: skip
    assert min(lengths.values()) > 65_536
    asked = {(name, asked) for name, asked, _ in hub.sent if name in lengths}
    assert asked == {(name, "bytes=0-65535") for name in lengths} | {
        (name, f"bytes=65536-{end - 1}") for name, end in lengths.items()
    }


def test_answers_of_the_hub_are_kept(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository(checkpoint(), branches=("main", "v2"))
    first = known_model(NAME)
    hub.sent.clear()
    hub.tokens_seen.clear()
    assert known_model(NAME) == first
    assert hub.tokens_seen == []
    # Another branch at the same commit: one question, no file.
    assert known_model(f"{NAME}@v2") == replace(first, name=f"{NAME}@v2")
    assert (len(hub.tokens_seen), hub.sent) == (1, [])
    hub.repositories.clear()
    assert known_model(NAME, offline=True) == first
    monkeypatch.setattr("backend.library.remote_facts._DAY", -1.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert known_model(NAME) == first


def test_what_is_in_the_cache_comes_first(hub: FakeHub, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--maker--tiny"
    write(checkpoint(), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    known = known_model(NAME)
    assert (known.facts, known.name) == (facts(), NAME)
    assert hub.tokens_seen == []


def test_a_config_in_the_cache_is_better_than_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--maker--tiny"
    write({"config.json": checkpoint()["config.json"]}, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for offline in (True, False):
        known = known_model(NAME, offline=offline)
        assert (known.facts, known.stored.bytes) == (facts(), None)


def test_pickles_are_known_by_the_config(hub: FakeHub) -> None:
    files = checkpoint()
    hub.repositories[NAME] = repository({"config.json": files["config.json"], "pytorch_model.bin": b"pickle"})
    known = known_model(NAME)
    assert known.facts == facts()
    assert known.stored.bytes is None
    assert "no safetensors" in known.source
    assert "no safetensors" in known.unserved
    assert [name for name, _, _ in hub.sent] == ["config.json"]


def test_a_private_repository_needs_its_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = repository(checkpoint(), token="hf_right")
    with pytest.raises(ModelNotFoundError, match="HF_TOKEN"):
        known_model(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert known_model(NAME).facts == facts()
    assert "Bearer hf_right" in hub.tokens_seen


def test_a_gated_repository_names_its_page(hub: FakeHub) -> None:
    hub.repositories[NAME] = repository(checkpoint(), gated=True)
    with pytest.raises(ModelAccessError) as caught:
        known_model(NAME)
    assert f"{hub.url}/{NAME}" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint


def test_a_gated_repository_that_the_catalogue_knows(hub: FakeHub) -> None:
    name = "meta-llama/Llama-3.1-8B-Instruct"
    hub.repositories[name] = repository(checkpoint(), gated=True)
    known = known_model(name)
    assert known.facts.parameters == 8_030_261_248
    assert "catalogue" in known.source
    assert "gated" in known.source
    assert "HF_TOKEN" in known.source


def test_without_the_hub_the_catalogue_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    known = known_model("Qwen/Qwen2.5-7B-Instruct-AWQ")
    assert (known.facts.parameters, known.stored.packing) == (7_615_616_512, "awq")
    assert "catalogue" in known.source
    with pytest.raises(DownloadError, match="network"):
        known_model("nobody/knows-this")


def test_offline_asks_nobody(hub: FakeHub) -> None:
    assert known_model("openai/gpt-oss-20b", offline=True).stored.packing == "mxfp4"
    with pytest.raises(ModelNotFoundError) as caught:
        known_model("meta-lama/Meta-Lama-3.1-8B", offline=True)
    assert "meta-llama/Meta-Llama-3.1-8B" in caught.value.hint
    assert hub.tokens_seen == []


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-ai/DeepSeek-V2 (236B)", "Qwen3-4B-Instruct-2507"])
def test_short_names_are_the_catalogues(hub: FakeHub, name: str) -> None:
    assert "catalogue" in known_model(name).source
    assert hub.tokens_seen == []


def test_an_unknown_model_names_those_that_look_alike(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean Qwen/Qwen3-8B"):
        known_model("Qwen/Qwen3-8")
    with pytest.raises(ModelNotFoundError, match="Did you mean openai/gpt-oss-20b"):
        known_model("gpt-os-20b")
    hub.repositories[NAME] = repository(checkpoint())
    with pytest.raises(ModelNotFoundError, match="no revision"):
        known_model(f"{NAME}@nothing")


def test_a_mirror_that_lacks_a_known_model(hub: FakeHub) -> None:
    assert "the hub has no repository" in known_model("openai/gpt-oss-20b").source
    with pytest.raises(ModelNotFoundError, match="Did you mean openai/gpt-oss-20b"):
        known_model("opnai/gpt-oss-20b")


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"model_type": "novel"}, "num_hidden_layers and no hidden_size and no num_attention_heads and no vocab_size"),
        ({"model_type": "novel", **SIZES, "vocab_size": None}, "vocab_size"),
    ],
)
def test_a_config_that_tells_too_little(tmp_path: Path, config: dict[str, Any], missing: str) -> None:
    folder = write({"config.json": json.dumps(config).encode()}, tmp_path / "model")
    with pytest.raises(BrokenModelError, match=missing):
        known_model(str(folder))


def test_a_type_that_transformers_lacks_is_read_from_its_fields(tmp_path: Path) -> None:
    config = {"model_type": "novel", "auto_map": {"AutoConfig": "x.Y"}, "architectures": ["NovelForCausalLM"], **SIZES}
    folder = write({"config.json": json.dumps(config).encode()}, tmp_path / "model")
    known = known_model(str(folder))
    assert not known.exact
    assert "fields" in known.source
    assert "code that comes with the model" in known.unserved
    layer = known.facts.layers[0]
    assert (len(known.facts.layers), layer.kv_heads, layer.key_size) == (4, 2, 32)
    # The same sizes as Llama's, but for ties that a config without the field has.
    assert known.facts.parameters == facts().parameters - 2048 * 256


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", b"abc"])
def test_a_broken_header_is_said_to_be(hub: FakeHub, damage: bytes) -> None:
    files = checkpoint()
    shard = "model-00001-of-00002.safetensors"
    hub.repositories[NAME] = repository(files | {shard: damage})
    with pytest.raises(BrokenModelError, match=shard):
        known_model(NAME)


def test_packed_weights_are_counted_by_their_headers(tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}
    files = checkpoint({f"model.layers.0.{index}.weight_scale_inv": torch.zeros(2) for index in range(3)})
    config = json.loads(files["config.json"]) | {"quantization_config": quantization}
    files["config.json"] = json.dumps(config).encode()
    known = known_model(str(write(files, tmp_path / "model")))
    assert known.stored.packing == "fp8-block"
    assert known.stored.excluded == ("lm_head",)
    assert known.stored.bytes == 2 * known.facts.parameters + 3 * 2 * 4
    assert (known.facts, known.unserved) == (facts(), "")


def test_layers_that_predict_ahead_are_not_counted(tmp_path: Path) -> None:
    ahead = {"model.layers.4.mlp.up_proj.weight": torch.zeros(64), "mtp.fc.weight": torch.zeros(64)}
    known = known_model(str(write(checkpoint(ahead), tmp_path / "model")))
    assert known.stored.bytes == 2 * known.facts.parameters


def test_weights_of_an_unreadable_packing_are_known_and_not_served(tmp_path: Path) -> None:
    files = checkpoint()
    config = json.loads(files["config.json"]) | {"quantization_config": {"quant_method": "bitsandbytes",
                                                                         "load_in_4bit": True}}  # fmt: skip
    files["config.json"] = json.dumps(config).encode()
    known = known_model(str(write(files, tmp_path / "model")))
    assert known.stored.packing == "nf4"
    assert "bitsandbytes" in known.unserved


def test_an_unserved_kind_still_has_facts(tmp_path: Path) -> None:
    sizes = SIZES | {
        "num_attention_heads": 8,
        "head_dim": 32,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    config = transformers.Qwen3_5TextConfig(**sizes, linear_num_key_heads=4, linear_num_value_heads=8,
                                            linear_key_head_dim=16, linear_value_head_dim=16)  # fmt: skip
    folder = write({"config.json": config.to_json_string(use_diff=False).encode()}, tmp_path / "model")
    known = known_model(str(folder))
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert known.facts.parameters == sum(one.numel() for one in built.parameters())
    assert [layer.keeps for layer in known.facts.layers] == [Keeps.FULL]
    (states,) = known.states
    assert (states.count, states.bytes) == (3, 2 * (4 * (2 * 64 + 128) + 8 * 16 * 16))
    assert "recurrent state" in known.unserved
    assert known.exact


def test_the_child_says_the_same_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write({"config.json": checkpoint()["config.json"]}, tmp_path / "model")
    code = "import sys; from backend.library.known_models import known_model; known = known_model(sys.argv[1]); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules); import msgspec; "
    code += "sys.stdout.buffer.write(msgspec.json.encode(known))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=True)
    import msgspec

    assert msgspec.json.decode(done.stdout, type=KnownModel) == known_model(str(folder))


def test_the_starter_before_it_is_fetched() -> None:
    known = known_model("starter")
    assert (known.facts.parameters, known.stored.packing) == (134_515_008, "gguf:Q4_1")
    assert known.stored.bytes == 96_576_768
    assert "not fetched" in known.source


def test_a_gguf_file_on_the_hub(hub: FakeHub, starter: Any) -> None:
    content = Path(starter.weights[0]).read_bytes()
    hub.repositories[NAME] = repository({"tiny-Q4_1.gguf": content})
    known = known_model(f"{NAME}:tiny-Q4_1.gguf")
    assert known.facts.parameters == 134_515_008
    assert known.stored.packing == "gguf:Q4_1"
    assert known.stored.bytes is not None
    assert 0 < len(content) - known.stored.bytes < 4 << 20
    assert sum(count for _, _, count in hub.sent) == 4 << 20 < len(content) / 10
    with pytest.raises(ModelNotFoundError, match="none is named"):
        known_model(NAME)
    with pytest.raises(ModelNotFoundError, match="no file"):
        known_model(f"{NAME}:other.gguf")


def test_a_gguf_file_here(starter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.symlink_to(starter.weights[0])
    monkeypatch.setattr("backend.library.known_models.derive", lambda source: Path(starter.folder))
    known = known_model(str(path))
    assert known.facts.parameters == 134_515_008
    assert known.exact
    assert known.unserved == ""

    def fail(source: Path) -> Path:
        raise BrokenModelError("no tokenizer")

    monkeypatch.setattr("backend.library.known_models.derive", fail)
    alone = known_model(str(path))
    for field in ("layers", "heads", "parameters", "vocabulary", "hidden", "columns", "layer_parameters"):
        assert getattr(alone.facts, field) == getattr(known.facts, field)
    assert alone.stored == known.stored


def test_a_gguf_header_that_never_ends(hub: FakeHub, starter: Any) -> None:
    content = Path(starter.weights[0]).read_bytes()[: 1 << 20] + bytes(1 << 20)
    hub.repositories[NAME] = repository({"tiny.gguf": content})
    with pytest.raises(BrokenModelError):
        known_model(f"{NAME}:tiny.gguf")
