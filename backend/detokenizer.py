"""Detokenizer: from token ids to text as it streams. Which tokens end an answer, and stop strings, are `stop_strings`'.

Each token adds bytes that do not depend on its neighbours, so a token costs one table look-up and text is emitted as
soon as its bytes are whole characters. Decoders for which this does not hold go through a short window of tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_WINDOW = 16


class Detokenizer(Protocol):
    """One answer's text. Not shared between answers."""

    def feed(self, token: int) -> str:
        """The characters that are certain now; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What remains at the end: U+FFFD for bytes that never became a character."""
        ...


class ByteDetokenizer:
    """For tokenizers whose tokens are byte strings (byte-level, or pieces with byte fallback).

    Args:
        bytes_of: a token's bytes.
        strip_first: drop one leading space of the answer's first token, as such decoders do.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], strip_first: bool = False) -> None:
        self._bytes_of = bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip_first = strip_first

    def feed(self, token: int) -> str:
        data = self._bytes_of(token)
        if self._strip_first and data:
            self._strip_first = False
            data = data.removeprefix(b" ")
        return self._decode(data)

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """For any other decoder: decodes a short window of tokens, and emits what the last token added to it."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._shown = 0

    def feed(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        # A trailing replacement character may yet become a character, for as long as the window can grow.
        if text.endswith("\ufffd") and len(self._window) < 2 * _WINDOW:
            return ""
        new = text[self._shown :]
        self._shown = len(text)
        if len(self._window) >= _WINDOW:
            self._window = self._window[-_WINDOW // 4 :]
            self._shown = len(self._decode(self._window))
        return new

    def flush(self) -> str:
        return self._decode(self._window)[self._shown :] if self._window else ""


class TokenBytes:
    """Token id to bytes, for one tokenizer; filled as tokens come up, at most once per token of the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, to_bytes: Callable[[str], bytes], hidden: frozenset[int]) -> None:
        self._tokenizer, self._to_bytes = tokenizer, to_bytes
        self._known: dict[int, bytes] = dict.fromkeys(hidden, b"")

    def __call__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            piece = self._tokenizer.id_to_token(token)
            # Ids past the vocabulary exist where the embedding is padded: they have no text.
            found = b"" if piece is None else self._to_bytes(piece)
            self._known[token] = found
        return found


class DetokenizerFactory:
    """Makes Detokenizers for one tokenizer.

    Args:
        tokenizer: the tokenizer, which other threads may use too.
        decoder: `decoder` of tokenizer.json.
        special: ids of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None, special: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        steps = _steps(decoder)
        self._strip_first = any(_strips(step) for step in steps)
        to_bytes = _to_bytes_of(steps)
        self._tables = None
        if to_bytes is not None:
            self._tables = {
                True: TokenBytes(tokenizer, to_bytes, special),
                False: TokenBytes(tokenizer, to_bytes, frozenset()),
            }

    def make(self, skip_special_tokens: bool = True, *, continues: bool = False) -> Detokenizer:
        """A new Detokenizer. With `continues` the text goes on from another, so that its first space is its own."""
        if self._tables is not None:
            return ByteDetokenizer(self._tables[skip_special_tokens], self._strip_first and not continues)
        return WindowDetokenizer(
            lambda tokens: self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        )

    def token_bytes(self, token: int) -> bytes:
        """A token's own bytes, special tokens included, for logprobs."""
        if self._tables is not None:
            return self._tables[False](token)
        return self._tokenizer.decode([token], skip_special_tokens=False).encode()


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for each in decoder["decoders"] for step in _steps(each)]
    return [decoder]


def _strips(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Strip":
        return step.get("content") == " " and step.get("start") == 1
    return step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"


def _to_bytes_of(steps: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes] | None:
    """How a token's text becomes bytes; None where a token's text depends on its neighbours."""
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel()
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        replacements = []
        for step in steps:
            if step["type"] == "Metaspace":
                replacements.append((step.get("replacement", "▁"), " "))
            elif step["type"] == "Replace":
                pattern = step.get("pattern", {})
                if "String" not in pattern:
                    return None
                replacements.append((pattern["String"], step["content"]))
            elif step["type"] == "Strip" and not _strips(step):
                return None
        return _Pieces(replacements, "ByteFallback" in kinds)
    return None


class _ByteLevel:
    """GPT-2's alphabet: one printable character for each byte. Tokens outside of it are their own text."""

    def __init__(self) -> None:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in set(printable)]
        self._bytes = {chr(byte): byte for byte in printable}
        self._bytes |= {chr(256 + index): byte for index, byte in enumerate(others)}

    def __call__(self, piece: str) -> bytes:
        try:
            return bytes([self._bytes[character] for character in piece])
        except KeyError:
            return piece.encode()


class _Pieces:
    """SentencePiece's alphabet: pieces of text with a mark for spaces, and `<0xAB>` for bytes."""

    def __init__(self, replacements: Sequence[tuple[str, str]], byte_fallback: bool) -> None:
        self._replacements, self._byte_fallback = tuple(replacements), byte_fallback

    def __call__(self, piece: str) -> bytes:
        if self._byte_fallback and (match := _BYTE_TOKEN.match(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode()
