"""How much one of several batches in flight takes, as pure functions: as much as each of the others, so that no stage
waits for one that has more to do."""

from __future__ import annotations

# Fewer tokens of prompts are not worth a batch of their own: reading the weights takes as long.
LEAST_TOKENS = 128


def decode_share(decoding: int, depth: int) -> int:
    """How many of so many sequences that decode, those in flight included, one of `depth` batches takes at most."""
    return -(-decoding // depth)


def token_share(tokens: int, step_tokens: int, depth: int) -> int:
    """Tokens of prompts in one of `depth` batches, where so many are not committed yet, those in flight included.

    All of a step's tokens where only one batch is in flight; else at least LEAST_TOKENS, as far as `depth` batches
    of them are one step's tokens at most.
    """
    if depth == 1:
        return step_tokens
    most = -(-step_tokens // depth)
    return min(most, max(LEAST_TOKENS, -(-tokens // depth)))
