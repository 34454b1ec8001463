"""What was measured of a model's KV formats, as plain values with a verdict. Measuring is `measure`'s. No torch."""

from __future__ import annotations

from msgspec import Struct

# A format passes where it raises perplexity by at most this share, and moves the next-token distributions by at most
# this mean KL divergence, in nats. A lower perplexity is a short text's chance; the divergence shows what it hides.
MOST_CHANGE = 0.005
MOST_DIVERGENCE = 2e-3


class FormatAccuracy(Struct, frozen=True, kw_only=True):
    """One format beside the model's own, over the same text.

    Attributes:
        kv_format: as `parse_kv_formats` reads it.
        token_bytes: bytes that one position takes over all layers, scales included.
        perplexity: of the text.
        change: of perplexity, as a share of that with the model's own format; negative where it is lower.
        divergence: mean KL divergence of the next token's distribution from that with the model's own format, in nats.
        first_difference: how many greedy tokens after the text were equal before one was not; None where all were.
    """

    kv_format: str
    token_bytes: int
    perplexity: float
    change: float
    divergence: float
    first_difference: int | None = None

    @property
    def passes(self) -> bool:
        """False also for figures that are no numbers."""
        return self.change <= MOST_CHANGE and self.divergence <= MOST_DIVERGENCE


class ContextAccuracy(Struct, frozen=True, kw_only=True):
    """All formats at one length of the text; `generated` greedy tokens were compared after it."""

    tokens: int
    generated: int
    formats: tuple[FormatAccuracy, ...]


class AccuracyReport(Struct, frozen=True, kw_only=True):
    """What `shardwise doctor --kv` found.

    Attributes:
        model, dtype, device: what was measured, where.
        contexts: by length, the first at most 512 tokens, the last the longest that there was time or memory for.
        chosen, reason: what --kv-format auto takes by these figures, and why.
    """

    model: str
    dtype: str
    device: str
    contexts: tuple[ContextAccuracy, ...]
    chosen: str
    reason: str
