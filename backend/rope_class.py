"""rope_class: what a sequence's keys depend on beside its tokens and their positions, as a pure function."""

from __future__ import annotations


def rope_class(prompt: int, length: int, recompute_lengths: tuple[int, ...], scaled_past: int | None) -> bytes:
    """Sequences of unequal classes never share cached pages.

    prompt, length: tokens of the prompt, and those known by now. recompute_lengths: where longrope switches, for a
    whole sequence at once. scaled_past: under dynamic NTK a token past this length is scaled by
    max(prompt, position + 1): a longer prompt scales all of its tokens in a way of its own, and shorter ones agree.
    """
    regime = sum(length > one for one in recompute_lengths)
    scaled = prompt if scaled_past is not None and prompt > scaled_past else 0
    return regime.to_bytes(4, "little") + scaled.to_bytes(8, "little")
