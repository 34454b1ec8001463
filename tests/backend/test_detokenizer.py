"""Detokenizers: the streamed text is the decoded text, and no half character is ever shown."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from backend.detokenizer import Detokenizer, DetokenizerFactory
from backend.library.files import ModelFiles
from backend.tokenizer import ModelTokenizer


@pytest.fixture(scope="module")
def tokenizer(starter: ModelFiles) -> ModelTokenizer:
    return ModelTokenizer(starter.folder)


@pytest.fixture(scope="module")
def decoder(starter: ModelFiles) -> Tokenizer:
    return Tokenizer.from_file(str(Path(starter.folder) / "tokenizer.json"))


def sentencepiece() -> Tokenizer:
    """As Llama 2's: marks for spaces, bytes where a character is unknown."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", "h", "e", "l", "o", "▁h", "lo", "é"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "h"), ("l", "o")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def wordpiece() -> Tokenizer:
    vocabulary = {"[UNK]": 0, "play": 1, "##ing": 2, "##ed": 3, "we": 4, ".": 5}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    return tokenizer


def factory(tokenizer: Tokenizer, special: frozenset[int] = frozenset()) -> DetokenizerFactory:
    import json

    return DetokenizerFactory(tokenizer, json.loads(tokenizer.to_str())["decoder"], special)


def streamed(detokenizer: Detokenizer, tokens: list[int]) -> str:
    parts = [detokenizer.feed(token) for token in tokens]
    assert all("\ufffd" not in part for part in parts[:-1]) or "\ufffd" in "".join(parts)
    return "".join(parts) + detokenizer.flush()


@settings(max_examples=300)
@given(tokens=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
def test_any_tokens_give_the_full_decode(tokenizer: ModelTokenizer, decoder: Tokenizer, tokens: list[int], skip: bool):
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    assert streamed(detokenizer, tokens) == decoder.decode(tokens, skip_special_tokens=skip)


# The starter lacks tokens for some bytes, of control characters for example.
@given(text=st.text("a Bé漢🦙\n<>✓ßكिñ👩🏽\u200d🚀", max_size=60))
def test_text_comes_back_and_no_piece_has_half_a_character(tokenizer: ModelTokenizer, text: str):
    detokenizer = tokenizer.detokenizer()
    parts = [detokenizer.feed(token) for token in tokenizer.encode_prompt(text)]
    assert "".join(parts) == text
    assert detokenizer.flush() == ""


def test_an_incomplete_character_is_shown_at_the_end_only(tokenizer: ModelTokenizer):
    tokens = tokenizer.encode_prompt("🦙")
    assert len(tokens) > 1
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.feed(token) for token in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert detokenizer.flush() == "\ufffd"


@given(text=st.text("helo é🦙漢", max_size=30))
def test_sentencepiece_tokens_give_the_full_decode(text: str):
    tokenizer = SENTENCEPIECE
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = factory(tokenizer, frozenset({1, 2})).make()
    assert streamed(detokenizer, tokens) == tokenizer.decode(tokens)


def test_an_answer_that_continues_a_text_keeps_its_first_space():
    tokens = SENTENCEPIECE.encode("hello", add_special_tokens=False).ids
    assert streamed(factory(SENTENCEPIECE).make(), tokens) == "hello"
    assert streamed(factory(SENTENCEPIECE).make(continues=True), tokens) == " hello"


@given(tokens=st.lists(st.integers(0, 5), max_size=60))
def test_other_decoders_give_the_full_decode(tokens: list[int]):
    tokenizer = WORDPIECE
    assert streamed(factory(tokenizer).make(), tokens) == tokenizer.decode(tokens)


def test_special_tokens_are_shown_on_request(tokenizer: ModelTokenizer):
    end = tokenizer.special["<|im_end|>"]
    assert tokenizer.detokenizer().feed(end) == ""
    assert tokenizer.detokenizer(skip_special_tokens=False).feed(end) == "<|im_end|>"


def test_ids_past_the_vocabulary_have_no_text(tokenizer: ModelTokenizer):
    assert tokenizer.detokenizer().feed(10**6) == ""


def test_time_is_linear_also_for_bytes_that_never_become_a_character(tokenizer: ModelTokenizer):
    halves = [token for token in range(tokenizer.vocabulary) if tokenizer.token_bytes(token) == b"\xf0"]
    detokenizer = tokenizer.detokenizer()
    began = time.process_time()
    for _ in range(200_000):
        detokenizer.feed(halves[0])
    assert time.process_time() - began < 1.0


SENTENCEPIECE = sentencepiece()
WORDPIECE = wordpiece()
