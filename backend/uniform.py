"""The randomness of sampling: one 64-bit number for a seed and an output index, from integers alone."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def uniform64(seed: int, index: int) -> int:
    """A number in [0, 2**64) that depends on nothing but its two arguments.

    It is output `index` of a SplitMix64 stream (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014; constants of Vigna's public-domain splitmix64.c). The stream's start is the
    mixed seed, so that the streams of neighbouring seeds are not shifted copies of each other.
    """
    start = _mix((seed + _GAMMA) & _MASK)
    return _mix((start + (index + 1) * _GAMMA) & _MASK)
