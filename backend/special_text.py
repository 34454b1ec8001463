"""SpecialText: keeps text of a user from becoming special tokens, by guards that a template carries through unharmed.

A guard is a short run of private-use characters, drawn anew for each prompt. It goes into the middle of whatever in a
user's text reads as a special token, survives trimming and joining by the template, and tells afterwards which special
tokens are the template's own. Text without such strings is left as it is, and encoded as ever.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

_PRIVATE_USE = range(0xE000, 0xF8FF)


def new_guard() -> str:
    """An unguessable mark (120 bits) that neither is white space nor has upper and lower case."""
    return "".join(chr(_PRIVATE_USE[secrets.randbelow(len(_PRIVATE_USE))]) for _ in range(10))


class SpecialText:
    """The texts of one tokenizer's special tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = tuple(token for token in tokens if token)
        pattern = _trie_pattern(self._tokens)
        self._anywhere = re.compile(f"(?={pattern})", re.DOTALL) if pattern else None
        self._whole = pattern
        self._beginnings = frozenset(t[:n] for t in self._tokens for n in range(1, len(t)))
        self._endings = frozenset(t[n:] for t in self._tokens for n in range(1, len(t)))
        self._longest = max((len(token) for token in self._tokens), default=0)

    def occurs_in(self, text: str) -> bool:
        return self._anywhere is not None and self._anywhere.search(text) is not None

    def guard(self, value: Any, guard: str) -> Any:
        """Guards each string in a JSON value, keys of mappings left as they are."""
        if isinstance(value, str):
            return self._guard_text(value, guard)
        if isinstance(value, Mapping):
            return {key: self.guard(each, guard) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.guard(each, guard) for each in value]
        return value

    def _guard_text(self, text: str, guard: str) -> str:
        if self._anywhere is None or not text:
            return text
        before = guard if self._cut_at(text, start=True) else ""
        after = guard if self._cut_at(text, start=False) else ""
        cuts = [match.start() + 1 for match in self._anywhere.finditer(text)]
        if cuts:
            edges = [0, *cuts, len(text)]
            text = guard.join(text[a:b] for a, b in pairwise(edges))
        return before + text + after

    def _cut_at(self, text: str, *, start: bool) -> bool:
        """Whether text next to this one could complete a special token."""
        for length in range(1, min(self._longest, len(text) + 1)):
            if start and text[:length] in self._endings:
                return True
            if not start and text[-length:] in self._beginnings:
                return True
        return False

    def genuine(self, text: str, guard: str) -> list[str]:
        """The special tokens of rendered text that are not a user's, in order."""
        if self._whole is None:
            return []
        return re.findall(f"{self._whole}(?!{guard})", text, flags=re.DOTALL)

    def split(self, text: str, guard: str) -> list[tuple[str, bool]]:
        """Splits rendered text into runs to encode one after the other: (text, whether special tokens count).

        Cuts lie only at special tokens, where an encoder cuts anyway. Guards are gone from the runs.
        """
        if guard not in text or self._whole is None:
            return [(text.replace(guard, ""), True)]
        runs: list[tuple[str, bool]] = []
        pending = ""
        for piece in re.split(f"({self._whole})(?!{guard})", text, flags=re.DOTALL):
            if guard not in piece:
                pending += piece
                continue
            if pending:
                runs.append((pending, True))
            pending = ""
            runs.append((piece.replace(guard, ""), False))
        if pending:
            runs.append((pending, True))
        return runs


def _trie_pattern(tokens: Iterable[str]) -> str | None:
    """A pattern that matches the longest of the tokens, in time that does not grow with their number."""
    root: dict[str, Any] = {}
    for token in tokens:
        node = root
        for character in token:
            node = node.setdefault(character, {})
        node[""] = {}
    return _node_pattern(root) if root else None


def _node_pattern(node: dict[str, Any]) -> str:
    # A chain of single characters becomes one literal, so that depth is that of the branches.
    literal = ""
    while len(node) == 1 and "" not in node:
        (character, node), *_ = node.items()
        literal += re.escape(character)
    branches = [re.escape(key) + _node_pattern(child) for key, child in node.items() if key]
    if not branches:
        return literal
    optional = "?" if "" in node else ""
    return f"{literal}(?:{'|'.join(branches)}){optional}"
