"""ModelTokenizer: transformers' tokens for ordinary text, and no special token from a user's text."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backend.errors import BrokenModelError, ContextOverflowError
from backend.library.files import ModelFiles
from backend.special_text import SpecialText, new_guard
from backend.tokenizer import ModelTokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def tokenizer(starter: ModelFiles) -> ModelTokenizer:
    return ModelTokenizer(starter.folder)


@pytest.fixture(scope="module")
def plain(starter: ModelFiles) -> Tokenizer:
    return Tokenizer.from_file(str(Path(starter.folder) / "tokenizer.json"))


def rendered(tokenizer: ModelTokenizer, text: str) -> list[int]:
    """As a template would have it: special tokens around a user's text."""
    guard = new_guard()
    return tokenizer.encode_rendered(
        f"<|im_start|>user\n{tokenizer.special_text.guard(text, guard)}<|im_end|>\n", guard
    )


def special_of(tokenizer: ModelTokenizer, tokens: list[int]) -> list[str]:
    names = {token: text for text, token in tokenizer.special.items()}
    return [names[token] for token in tokens if token in names]


@given(text=st.text(max_size=80))
def test_ordinary_text_is_encoded_as_a_whole(tokenizer: ModelTokenizer, plain: Tokenizer, text: str):
    whole = plain.encode(f"<|im_start|>user\n{text}<|im_end|>\n", add_special_tokens=False).ids
    assert rendered(tokenizer, text) == whole


fragments = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<", "|>", " ", "user", "\n", "<reponame>"]
)


@given(text=st.lists(fragments, max_size=8).map("".join))
def test_user_text_never_becomes_special_tokens(tokenizer: ModelTokenizer, text: str):
    tokens = rendered(tokenizer, text)
    assert special_of(tokenizer, tokens) == ["<|im_start|>", "<|im_end|>"]
    assert tokenizer.decode(tokens) == f"<|im_start|>user\n{text}<|im_end|>\n"


@given(text=st.lists(fragments, max_size=8).map("".join))
def test_raw_prompts_have_special_tokens_only_on_request(tokenizer: ModelTokenizer, plain: Tokenizer, text: str):
    assert special_of(tokenizer, tokenizer.encode_prompt(text)) == []
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == text
    assert tokenizer.encode_prompt(text, parse_special=True) == plain.encode(text).ids


def test_a_guard_of_another_request_is_just_text(tokenizer: ModelTokenizer):
    text = f"<{new_guard()}|im_end|>"
    assert tokenizer.decode(rendered(tokenizer, text)) == f"<|im_start|>user\n{text}<|im_end|>\n"


def test_special_text_finds_tokens_that_share_beginnings():
    special = SpecialText(["<a>", "<ab>", "<a><b>", "x"])
    guard = new_guard()
    assert special.genuine("<a><ab><a><b>x<c>", guard) == ["<a>", "<ab>", "<a><b>", "x"]
    assert special.genuine(special.guard("<a><ab><a><b>x<c>", guard), guard) == []
    assert SpecialText([]).guard("<a>", guard) == "<a>"


def test_guarding_a_megabyte_takes_under_a_second(tokenizer: ModelTokenizer):
    began = time.process_time()
    for text in ("<" * 1_000_000, "<|im_end|" * 110_000, "<|im_end|>" * 100_000):
        tokenizer.special_text.guard(text, new_guard())
    assert time.process_time() - began < 1.0


def test_much_too_long_text_is_refused_without_encoding_all_of_it(tokenizer: ModelTokenizer):
    began = time.process_time()
    with pytest.raises(ContextOverflowError, match=r"context is 2048 tokens, and the prompt has more than \d+"):
        tokenizer.check_length("word and word " * 500_000, 2048)
    assert time.process_time() - began < 0.1
    tokenizer.check_length("word " * 1000, 2048)


def test_end_tokens_come_from_all_the_places_that_name_them(starter: ModelFiles, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(starter.folder, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [0, 2], "temperature": 0.6, "top_k": 20})
    )
    tokenizer = ModelTokenizer(folder)
    assert set(tokenizer.eos) == {0, 2}
    assert tokenizer.defaults().temperature == 0.6
    assert tokenizer.defaults().top_k == 20
    assert tokenizer.defaults().top_p is None


def test_the_starter_ends_with_its_end_of_turn(tokenizer: ModelTokenizer):
    assert tokenizer.special["<|im_end|>"] in tokenizer.eos


@pytest.mark.parametrize("content", ["", "{", '{"model": {}}', "[]"])
def test_a_broken_file_is_named(starter: ModelFiles, tmp_path: Path, content: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BrokenModelError, match=r"tokenizer\.json"):
        ModelTokenizer(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BrokenModelError, match=r"tokenizer\.json"):
        ModelTokenizer(tmp_path)
