"""Broken model files of every kind end in a clear error, at once and without taking memory."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from backend.errors import BrokenModelError, ShardwiseError, UnsupportedModelError
from backend.library.architectures import causal_language_models
from backend.library.checks import check
from backend.library.files import ModelFiles
from backend.library.folders import INDEX
from backend.library.gguf_header import read_gguf_header
from backend.library.header import TensorEntry
from backend.library.safetensors_header import read_safetensors_header

FIRST = np.arange(6, dtype=np.float32).reshape(2, 3)
SECOND = np.arange(4, dtype=np.int8)


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "cd"])
    writer.add_token_types([1, 1, 1])
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tensor("first", FIRST)
    writer.add_tensor(
        "second",
        gguf.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def good_safetensors(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / "good.safetensors"
    save_file({"first": FIRST, "second": SECOND}, path, {"format": "pt"})
    return path.read_bytes()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, content: bytes, read: Callable[[Path], object]) -> ShardwiseError:
    """The error for `content`, which must come within a second and 32 MiB."""
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises((BrokenModelError, UnsupportedModelError)) as caught:
            read(path)
        assert time.monotonic() - begin < 1
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.what
    return caught.value


def test_a_good_safetensors_header_places_each_tensor(tmp_path: Path, good_safetensors: bytes) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good_safetensors)
    tensors = {tensor.name: tensor for tensor in read_safetensors_header(path)}
    for name, expected in {"first": FIRST, "second": SECOND}.items():
        found = tensors[name]
        assert good_safetensors[found.start : found.start + found.bytes] == expected.tobytes()
        assert (found.shape, found.file) == (expected.shape, str(path))
    assert (tensors["first"].dtype, tensors["second"].dtype) == ("F32", "I8")


def test_a_good_gguf_header_places_each_tensor(tmp_path: Path, good_gguf: bytes) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(good_gguf)
    header = read_gguf_header(path)
    first, second = header.tensors
    assert good_gguf[first.start : first.start + first.bytes] == FIRST.tobytes()
    assert second == TensorEntry("second", "Q8_0", (2, 64), str(path), second.start, 2 * 2 * 34)
    assert (header.architecture, header.values["llama.rope.freq_base"]) == ("llama", 10000.0)
    reader = gguf.GGUFReader(path)
    assert [tensor.start for tensor in header.tensors] == [tensor.data_offset for tensor in reader.tensors]


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=1 << 62),
        safetensors({}, length=101 << 20),
        safetensors(b"[]"),
        safetensors(b"{"),
        safetensors(b"\xff\xfe"),
        safetensors(b'{"a":' * 20_000),
        safetensors(b"[" * 200_000),
        safetensors(b'{"a":' + b"9" * 10_000 + b"}"),
        safetensors({"a": 1}),
        safetensors({"a": entry()}),
        safetensors({"a": entry()}, bytes(5)),
        safetensors({"a": entry(dtype="F12")}, bytes(4)),
        safetensors({"a": entry(dtype=["U8"])}, bytes(4)),
        safetensors({"a": entry(shape=[-4])}, bytes(4)),
        safetensors({"a": entry(shape=[True, 4])}, bytes(4)),
        safetensors({"a": entry(shape=[2.0, 2])}, bytes(4)),
        safetensors({"a": entry(shape=[1 << 40, 1 << 40])}, bytes(4)),
        safetensors({"a": entry(shape=[1 << 62] * 9)}, bytes(4)),
        safetensors({"a": entry(shape=[4, 1 << 64, 0], offsets=[0, 0])}),
        safetensors({"a": entry(offsets=[4, 0])}, bytes(4)),
        safetensors({"a": entry(offsets=[-4, 0])}, bytes(4)),
        safetensors({"a": entry(offsets=[0, 4, 8])}, bytes(4)),
        safetensors({"a": entry(offsets=[4, 8])}, bytes(8)),
        safetensors({"a": entry(), "b": entry()}, bytes(4)),
        safetensors({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
        safetensors({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
        safetensors({"a" * 2000: entry()}, bytes(4)),
        safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    ],
)
def test_safetensors_that_contradict_themselves(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "broken.safetensors", content, read_safetensors_header)


def test_safetensors_cut_at_any_byte(tmp_path: Path, good_safetensors: bytes) -> None:
    for length in range(len(good_safetensors)):
        refused(tmp_path / "cut.safetensors", good_safetensors[:length], read_safetensors_header)


def test_gguf_cut_at_any_byte(tmp_path: Path, good_gguf: bytes) -> None:
    # The last tensor's padding is not data.
    for length in range(len(good_gguf) - 32):
        refused(tmp_path / "cut.gguf", good_gguf[:length], read_gguf_header)


def value(name: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + content


def gguf_file(tensors: int = 0, values: tuple[bytes, ...] = (), rest: bytes = b"", count: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values) if count is None else count)
    return head + b"".join(values) + rest


def tensor(name: bytes, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return head + struct.pack("<IQ", kind, offset)


def listed(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGML" + bytes(100),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        gguf_file(tensors=1 << 63, rest=bytes(1000)),
        gguf_file(tensors=60_000, rest=bytes(1000)),
        gguf_file(count=1 << 40, rest=bytes(1000)),
        gguf_file(count=1, rest=struct.pack("<Q", (1 << 64) - 1) + bytes(100)),
        gguf_file(values=(value(b"k", 99, bytes(8)),)),
        gguf_file(values=(value(b"k", 8, struct.pack("<Q", 1 << 50)),), rest=bytes(100)),
        gguf_file(values=(value(b"k", 9, listed(4, 1 << 61)),), rest=bytes(100)),
        gguf_file(values=(value(b"k", 9, listed(8, 1 << 30)),), rest=bytes(100)),
        gguf_file(values=(value(b"k", 9, listed(8, 2, struct.pack("<Q", 1 << 63))),), rest=bytes(100)),
        gguf_file(values=(value(b"k", 9, listed(9, 1, listed(9, 1))),), rest=bytes(100)),
        gguf_file(values=(value(b"k", 9, listed(8, 5_000_000)),), rest=bytes(41_000_000)),
        gguf_file(values=(value(b"k", 0, b"\1"), value(b"k", 0, b"\1"))),
        gguf_file(values=(value(b"general.alignment", 4, bytes(4)),)),
        gguf_file(values=(value(b"general.alignment", 8, struct.pack("<Q", 2) + b"32"),)),
        gguf_file(values=(value(b"split.count", 2, struct.pack("<H", 3)),)),
        gguf_file(values=(value(b"split.count", 8, struct.pack("<Q", 1) + b"x"),)),
        gguf_file(values=(value(b"split.count", 6, struct.pack("<f", float("nan"))),)),
        gguf_file(tensors=1, rest=tensor(b"t", ()) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (1,) * 5) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (0,)) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (1 << 63, 1 << 63)) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (8,), kind=77) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (33,), kind=8) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (8,), offset=1 << 40) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (8,), offset=(1 << 64) - 32) + bytes(100)),
        gguf_file(tensors=1, rest=tensor(b"t", (1,), offset=3) + bytes(100)),
        gguf_file(tensors=2, rest=tensor(b"t", (8,)) + tensor(b"t", (8,), offset=32) + bytes(200)),
        gguf_file(tensors=2, rest=tensor(b"t", (16,)) + tensor(b"u", (8,), offset=32) + bytes(200)),
    ],
)
def test_ggufs_that_contradict_themselves(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "broken.gguf", content, read_gguf_header)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_changed_bytes_never_surprise(
    tmp_path: Path, good_gguf: bytes, good_safetensors: bytes, changes: list[tuple[int, int]], is_gguf: bool
) -> None:
    content = bytearray(good_gguf if is_gguf else good_safetensors)
    for position, byte in changes:
        content[position % len(content)] = byte
    path = tmp_path / "changed"
    path.write_bytes(content)
    begin = time.monotonic()
    try:
        tensors = read_gguf_header(path).tensors if is_gguf else read_safetensors_header(path)
    except (BrokenModelError, UnsupportedModelError):
        tensors = ()
    assert time.monotonic() - begin < 1
    assert all(tensor.start + tensor.bytes <= len(content) for tensor in tensors)


def model(folder: Path, shards: dict[str, dict[str, np.ndarray]], model_type: str = "llama") -> ModelFiles:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    weights = tuple(str(folder / name) for name in shards)
    return ModelFiles(name="org/name", format="safetensors", weights=weights, folder=str(folder), bytes=1)


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_good_model_gives_the_numbers_that_memory_is_planned_with(tmp_path: Path) -> None:
    files = model(tmp_path, {"a.safetensors": {"first": FIRST}, "b.safetensors": {"second": SECOND}})
    write_index(tmp_path, {"first": "a.safetensors", "second": "b.safetensors"})
    header = check(files)
    assert (header.model_type, header.architecture) == ("llama", "LlamaForCausalLM")
    assert (header.parameters, header.bytes) == (6 + 4, 24 + 4)
    assert [Path(tensor.file).name for tensor in header.tensors] == ["a.safetensors", "b.safetensors"]


def test_shards_and_index_must_agree(tmp_path: Path) -> None:
    files = model(tmp_path, {"a.safetensors": {"first": FIRST}, "b.safetensors": {"second": SECOND}})
    write_index(tmp_path, {"first": "a.safetensors", "second": "b.safetensors", "third": "b.safetensors"})
    with pytest.raises(BrokenModelError, match=r"third is not in b\.safetensors"):
        check(files)
    write_index(tmp_path, {"first": "a.safetensors", "third": "c.safetensors"})
    with pytest.raises(BrokenModelError, match=r"c\.safetensors is missing"):
        check(files)
    write_index(tmp_path, {"first": "../a.safetensors"})
    with pytest.raises(BrokenModelError, match="places first in"):
        check(files)
    save_file({"first": FIRST}, tmp_path / "b.safetensors")
    with pytest.raises(BrokenModelError, match=r"first is in a\.safetensors and again in b\.safetensors"):
        check(files)


def test_kinds_that_are_not_served_are_named(tmp_path: Path) -> None:
    files = model(tmp_path, {"a.safetensors": {"first": FIRST}}, model_type="bert_of_tomorrow")
    with pytest.raises(UnsupportedModelError, match="'bert_of_tomorrow'"):
        check(files)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"quant_method": "aqlm"}}')
    with pytest.raises(UnsupportedModelError, match="packed by aqlm"):
        check(files)
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}')
    with pytest.raises(UnsupportedModelError, match="never runs code"):
        check(files)
    for text in ("{}", "[]", "{", '{"model_type": 3}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BrokenModelError):
            check(files)


def test_the_table_of_architectures_is_transformers_own() -> None:
    table = causal_language_models()
    assert len(table) > 150
    expected = {"llama": "LlamaForCausalLM", "gpt_oss": "GptOssForCausalLM", "gemma2": "Gemma2ForCausalLM"}
    assert expected.items() <= table.items()
