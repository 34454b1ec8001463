"""ModelTokenizer: a model's tokenizer files: text to tokens and back, end tokens, sampling defaults. Chat is
`chat_template`'s.

Text of a user never becomes special tokens: only a chat template's own text does, or a prompt whose sender asks for it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backend.detokenizer import Detokenizer, DetokenizerFactory
from backend.errors import BrokenModelError, ContextOverflowError
from backend.special_text import SpecialText

# A slice is a few milliseconds of encoding; cutting one off text adds at most a few tokens.
_SLICE_CHARACTERS = 32 * 1024
_SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What `generation_config.json` says on sampling; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelTokenizer:
    """One model's tokenizer; its methods may be called from any thread.

    Args:
        folder: `ModelFiles.folder`.

    Raises:
        BrokenModelError: a file is missing or is not what it should be.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        text = _read(self._folder / "tokenizer.json")
        self._text_tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()
        try:
            self._tokenizer = _open(self._folder)
            parts = json.loads(text)
            added = parts.get("added_tokens") or []
            self.special = {each["content"]: int(each["id"]) for each in added if each.get("special")}
            self._factory = DetokenizerFactory(self._tokenizer, parts.get("decoder"), frozenset(self.special.values()))
        except Exception as error:  # tokenizers raises plain Exception for whatever it cannot read
            raise _broken(self._folder / "tokenizer.json", error) from error
        self.config = _read_json(self._folder / "tokenizer_config.json")
        self.generation = _read_json(self._folder / "generation_config.json")
        self._model_config = _read_json(self._folder / "config.json")
        self._special_ids = frozenset(self.special.values())
        self._special_text = SpecialText(self.special)
        self.eos = self._end_tokens()

    @property
    def special_text(self) -> SpecialText:
        return self._special_text

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def trained_context(self) -> int | None:
        """`max_position_embeddings` of config.json, where it says so."""
        value = self._model_config.get("max_position_embeddings")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def encode_prompt(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of a raw prompt. `add_special` adds what the tokenizer begins or ends texts with; special tokens
        written in the text count only with `parse_special`."""
        if not parse_special and self._special_text.occurs_in(text):
            return self._without_special().encode(text, add_special_tokens=add_special).ids
        return self._tokenizer.encode(text, add_special_tokens=add_special).ids

    def encode_rendered(self, text: str, guard: str) -> list[int]:
        """Tokens of a rendered chat, whose user texts were guarded with `guard` before rendering.

        Equal to encoding the whole text at once, unless a user's text would become a special token.
        """
        ids = self._tokenizer.encode(text.replace(guard, ""), add_special_tokens=False).ids
        genuine = [self.special[each] for each in self._special_text.genuine(text, guard)]
        if [token for token in ids if token in self._special_ids] == genuine:
            return ids
        ids = []
        for run, special in self._special_text.split(text, guard):
            tokenizer = self._tokenizer if special else self._without_special()
            ids += tokenizer.encode(run, add_special_tokens=False).ids
        return ids

    def check_length(self, text: str, limit: int) -> None:
        """Refuses text that cannot fit, without encoding all of it.

        Raises:
            ContextOverflowError: the text is certainly longer than `limit` tokens.
        """
        if len(text) <= max(4 * limit, _SLICE_CHARACTERS):
            return
        least = 0
        for start in range(0, len(text), _SLICE_CHARACTERS):
            part = text[start : start + _SLICE_CHARACTERS]
            least += max(0, len(self._tokenizer.encode(part, add_special_tokens=False).ids) - _SLACK_TOKENS)
            if least > limit:
                raise ContextOverflowError(
                    f"This model's context is {limit} tokens, and the prompt has more than {least}",
                    hint="Shorten the prompt.",
                )

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = True, continues: bool = False) -> Detokenizer:
        """A new Detokenizer for one answer; `continues` where the answer goes on from the prompt's text."""
        return self._factory.make(skip_special_tokens, continues=continues)

    def token_bytes(self, token: int) -> bytes:
        return self._factory.token_bytes(token)

    def token_text(self, token: int) -> str:
        """A token's own text, with U+FFFD for bytes that are no whole character."""
        return self._factory.token_bytes(token).decode("utf-8", "replace")

    def defaults(self) -> SamplingDefaults:
        """The model's own sampling; greedy where it says that it is not to be sampled."""
        found = self.generation

        def number(name: str) -> float | None:
            value = found.get(name)
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

        top_k = number("top_k")
        return SamplingDefaults(
            number("temperature"),
            number("top_p"),
            int(top_k) if top_k is not None else None,
            number("min_p"),
            number("repetition_penalty"),
        )

    def named_special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, ... as chat templates see them."""
        found: dict[str, str] = {}
        for name, value in self.config.items():
            if name.endswith("_token"):
                content = value.get("content") if isinstance(value, Mapping) else value
                if isinstance(content, str):
                    found[name] = content
        return found

    def _end_tokens(self) -> tuple[int, ...]:
        ids: list[int] = []
        source = self.generation if "eos_token_id" in self.generation else None
        value = (source or self._model_config).get("eos_token_id")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and not isinstance(each, bool) and each >= 0:
                ids.append(each)
        named = self.named_special_tokens().get("eos_token")
        token = self._tokenizer.token_to_id(named) if named else None
        if token is not None:
            ids.append(token)
        return tuple(dict.fromkeys(ids))

    def _without_special(self) -> Tokenizer:
        # A second tokenizer, because the switch is the tokenizer's, and other threads may be encoding.
        with self._lock:
            if self._text_tokenizer is None:
                self._text_tokenizer = _open(self._folder)
                self._text_tokenizer.encode_special_tokens = True
            return self._text_tokenizer


def _open(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise _broken(path, error) from error
    if not isinstance(found, dict):
        raise _broken(path, ValueError("it is not a JSON object"))
    return found


def _broken(path: Path, error: Exception) -> BrokenModelError:
    return BrokenModelError(
        f"The tokenizer cannot be read: {path.name}", str(error)[:500], "Remove the model and pull it again."
    )
