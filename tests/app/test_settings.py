"""Settings: where they come from, in which order, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import ServerSettings, load_settings
from backend.errors import SettingError
from backend.library.files import ModelFiles
from backend.sizes import parse_size


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty config folder, where `settings.toml` may be written."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "shardwise").mkdir()
    return tmp_path / "shardwise" / "settings.toml"


def test_every_setting_has_a_sentence() -> None:
    for name, field in ServerSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_command_line_beats_the_environment_which_beats_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().port == 8000
    config.write_text('port = 1000\nkv_pool = "2GiB"\nmax_context = "auto"\n')
    assert load_settings().port == 1000
    monkeypatch.setenv("SHARDWISE_PORT", "2000")
    assert load_settings(port=None).port == 2000
    settings = load_settings(port="3000", max_context="8192")
    assert (settings.port, settings.kv_pool, settings.max_context) == (3000, 2 * 1024**3, 8192)


def test_lists_of_names_may_stand_in_one_string(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('allowed_hosts = ["a.lan", "b.lan"]\n')
    monkeypatch.setenv("SHARDWISE_ALLOWED_ORIGINS", "https://a.lan, https://b.lan:8443")
    settings = load_settings()
    assert settings.allowed_hosts == ("a.lan", "b.lan")
    assert settings.allowed_origins == ("https://a.lan", "https://b.lan:8443")


def test_the_engine_gets_what_was_asked() -> None:
    files = ModelFiles(name="m", format="gguf", weights=("/w",), folder="/w", bytes=1)
    engine = load_settings(dtype="float32", kv_pool="500MB", tp="1", max_sequences="4").engine(files)
    assert (engine.files, engine.dtype, engine.kv_pool, engine.max_sequences) == (files, "float32", 500_000_000, 4)
    assert (engine.max_context, engine.threads) == (None, None)
    assert (engine.tensor_parallel, engine.experts) == (1, "auto")
    spread = load_settings(tp="3", experts="expert").engine(files)
    assert (spread.tensor_parallel, spread.experts) == (3, "expert")
    assert load_settings(tp="auto").engine(files).tensor_parallel is None
    assert (spread.collectives, spread.collective_timeout) == ((), 60.0)
    named = load_settings(collectives="nccl, host", collective_timeout="5").engine(files)
    assert (named.collectives, named.collective_timeout) == (("nccl", "host"), 5.0)


def test_tiers_and_formats_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = ModelFiles(name="m", format="gguf", weights=("/w",), folder="/w", bytes=1)
    plain = load_settings().engine(files)
    assert (plain.host_cache, plain.disk_cache, plain.cache_dir, plain.kv_format) == (None, 0, "", "model")
    assert plain.host_weights == 0, "a slow mode has to be asked for"
    assert load_settings(host_weights="auto").engine(files).host_weights is None
    assert load_settings(host_weights="20GiB").engine(files).host_weights == 20 * 1024**3
    none = load_settings(host_cache="0", disk_cache="0").engine(files)
    assert (none.host_cache, none.disk_cache, none.cache_dir) == (0, 0, "")
    given = load_settings(host_cache="1GiB", disk_cache="2GB", kv_format="k=int8,v=fp8").engine(files, b"s")
    assert (given.host_cache, given.disk_cache, given.kv_format) == (1024**3, 2 * 10**9, "k=int8,v=fp8")
    assert given.cache_dir == str(tmp_path / "cache" / "shardwise" / "pages")
    assert given.cache_secret == b"s"
    moved = load_settings(disk_cache="1MB", cache_dir=str(tmp_path / "here"), host_cache="auto", kv_format="auto")
    assert moved.engine(files).cache_dir == str(tmp_path / "here")
    assert (moved.host_cache, moved.kv_format) == (None, "auto")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "0"}, "--tp cannot be '0'"),
        ({"tp": "two"}, "--tp cannot be 'two'"),
        ({"experts": "both"}, "--experts cannot be 'both'"),
        ({"pp": "0"}, "--pp cannot be '0'"),
        ({"layers": "20,x"}, "--layers cannot be"),
        ({"layers": "20,0"}, "--layers cannot be"),
        ({"peers": "some"}, "--peers cannot be 'some'"),
        ({"replicas": "0"}, "--replicas cannot be '0'"),
        ({"kv_format": "fp4"}, "--kv-format cannot be 'fp4'"),
        ({"kv_format": "k=int8,k=fp8"}, "--kv-format cannot be"),
        ({"disk_cache": "auto"}, "--disk-cache cannot be"),
        ({"disk_cache": "-1"}, "--disk-cache cannot be '-1'"),
        ({"weights": "int4"}, "--weights cannot be 'int4'"),
        ({"host_cache": "lots"}, "--host-cache cannot be 'lots'"),
        ({"host_weights": "-2GiB"}, "--host-weights cannot be '-2GiB'"),
        ({"port": "70000"}, "--port cannot be '70000'"),
        ({"port": "http"}, "--port cannot be 'http'"),
        ({"device": "tpu"}, "--device cannot be 'tpu'"),
        ({"kv_pool": "much"}, "--kv-pool cannot be 'much'"),
        ({"max_context": "0"}, "--max-context cannot be '0'"),
        ({"drain_timeout": "-1"}, "--drain-timeout cannot be '-1'"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(options: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_settings(**options)
    assert words in caught.value.what
    assert caught.value.hint
    assert caught.value.exit_status == 2


def test_what_a_file_says_wrongly_is_refused_with_its_path(config: Path) -> None:
    for text, word in (("prot = 1\n", "prot"), ("port = = 1\n", "settings file")):
        config.write_text(text)
        with pytest.raises(SettingError, match=word) as caught:
            load_settings()
        assert str(config) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * 1024**3),
        ("500MB", 500_000_000),
        ("1.5G", 1_500_000_000),
        ("2 kib", 2048),
        ("7", 7),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "1e3", "0", "1 2GB", "12XB", "1.GB", "9" * 40, "\u0661GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SettingError, match="not a size"):
        parse_size(text)
