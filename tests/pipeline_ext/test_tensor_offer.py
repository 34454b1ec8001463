"""Offers: what they may say, and how a machine finds the same model at home."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from backend.library.files import ModelFiles
from backend.library.resolve import resolve
from pipeline_ext.tensor_offer import (
    BrokenOfferError,
    OfferedText,
    TensorOffer,
    decode_offer,
    encode_offer,
    make_offer,
    recognized,
    same_config,
)


def made(folder: Path, seed: int = 1) -> ModelFiles:
    folder.mkdir(parents=True)
    values = np.random.default_rng(seed).integers(0, 256, 100_000, dtype=np.uint8)
    save_file({"weight": values}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return resolve(str(folder))


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return made(tmp_path / "model")


def test_an_offer_says_what_is_there_and_comes_back_the_same(files: ModelFiles) -> None:
    offer = make_offer(files, "10.0.0.1:4000")
    assert [text.name for text in offer.texts] == ["config.json", "tokenizer.json"]
    assert offer.weights[0].header < offer.weights[0].size
    assert decode_offer(encode_offer(offer)) == offer


def test_its_digest_is_of_the_content_alone(files: ModelFiles, tmp_path: Path) -> None:
    other = made(tmp_path / "other", seed=2)
    assert make_offer(files, "a:1").digest == make_offer(msgspec.structs.replace(files, name="x"), "b:2").digest
    assert make_offer(files).digest != make_offer(other).digest


def test_the_same_model_is_recognized_by_its_name_and_bytes(files: ModelFiles) -> None:
    found = recognized(make_offer(files))
    assert found == files
    assert same_config(make_offer(files), files)


def test_a_model_of_the_same_shape_but_other_weights_is_not_the_same(files: ModelFiles, tmp_path: Path) -> None:
    offer = make_offer(files)
    shutil.rmtree(tmp_path / "model")
    made(tmp_path / "model", seed=2)
    assert recognized(offer) is None


def test_another_config_is_seen(files: ModelFiles) -> None:
    offer = make_offer(files)
    (Path(files.folder) / "config.json").write_text('{"model_type": "llama", "rope_theta": 2}')
    assert recognized(offer) is not None
    assert not same_config(offer, files)


def test_an_unknown_name_is_nobodys(files: ModelFiles, tmp_path: Path) -> None:
    offer = msgspec.structs.replace(make_offer(files), model=str(tmp_path / "nowhere"))
    assert recognized(offer) is None


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "config.json/..", "code.py", "", ".ssh", "config.json\0", "a/b.json"]
)
def test_no_text_has_a_path_or_is_code(name: str, files: ModelFiles) -> None:
    offer = make_offer(files)
    broken = msgspec.structs.replace(offer, texts=(OfferedText(name, 1, bytes(32)),))
    with pytest.raises(BrokenOfferError, match="A small file is called"):
        decode_offer(encode_offer(broken))


@pytest.mark.parametrize("name", ["../m.safetensors", "/m.gguf", "m.bin", "..safetensors", "a/b.gguf", "journal", ""])
def test_no_weight_file_has_a_path_or_another_kind(name: str, files: ModelFiles) -> None:
    offer = make_offer(files)
    broken = msgspec.structs.replace(offer, weights=(msgspec.structs.replace(offer.weights[0], name=name),))
    with pytest.raises(BrokenOfferError, match="A weight file is called"):
        decode_offer(encode_offer(broken))


@pytest.mark.parametrize(("size", "header"), [(10, 11), (10, 0), (10, -1), (1 << 40, 1 << 30)])
def test_no_header_is_longer_than_it_may_be(size: int, header: int, files: ModelFiles) -> None:
    offer = make_offer(files)
    broken = msgspec.structs.replace(offer.weights[0], size=size, header=header)
    with pytest.raises(BrokenOfferError, match="has a header of"):
        decode_offer(encode_offer(msgspec.structs.replace(offer, weights=(broken,))))


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_offer(TensorOffer("m", "gguf", (), ()))])
def test_what_is_no_offer_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenOfferError):
        decode_offer(data)
