"""KeyChain: keys depend on every token before, on the group, and on the root; and not on how tokens arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcache.page_key import KeyChain, root_of

ROOT = root_of(b"model", b"salt", b"kind")


def chain(tokens: list[int], page_tokens: tuple[int, ...] = (4, 2, 8), root: bytes = ROOT) -> KeyChain:
    made = KeyChain(root, page_tokens)
    made.extend(tokens[: len(tokens) // made.unit * made.unit])
    return made


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.lists(st.integers(1, 5), max_size=20))
def test_a_chain_is_the_same_however_it_was_extended(tokens: list[int], steps: list[int]):
    parts = KeyChain(ROOT, (4, 2, 8))
    for units in steps:
        begin = parts.length
        new = tokens[begin : begin + 2 * units]
        parts.extend(new[: len(new) // 2 * 2])
    whole = chain(tokens[: parts.length])
    assert (parts.links, parts.keys) == (whole.links, whole.keys)
    assert [len(keys) for keys in parts.keys] == [parts.length // size for size in (4, 2, 8)]


@given(st.integers(0, 31), st.integers(0, 10))
def test_a_changed_token_changes_all_keys_from_its_page_on(place: int, by: int):
    tokens = list(range(32))
    changed = [*tokens[:place], tokens[place] + 1 + by, *tokens[place + 1 :]]
    for size, old, new in zip((4, 2, 8), chain(tokens).keys, chain(changed).keys, strict=True):
        assert old[: place // size] == new[: place // size]
        assert not set(old[place // size :]) & set(new)


def test_groups_and_roots_have_keys_of_their_own():
    keys = chain(list(range(32)), (4, 4)).keys
    assert not set(keys[0]) & set(keys[1])
    roots = {
        root_of(b"model", b"salt", b"kind"),
        root_of(b"models", b"alt", b"kind"),
        root_of(b"model", b"salt", b"other"),
        root_of(b"model", b"", b"saltkind"),
        root_of(b"modelsalt", b"kind"),
    }
    assert len(roots) == 5
    assert len({chain(list(range(4)), (4,), root).keys[0][0] for root in roots}) == 5
