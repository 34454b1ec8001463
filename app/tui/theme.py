"""The theme of our own; the built-in ones come from Textual."""

from __future__ import annotations

from textual.theme import Theme

SHARDWISE = Theme(
    name="shardwise",
    dark=True,
    primary="#5eb1ef",
    secondary="#8f9bb3",
    accent="#f2b84b",
    foreground="#e3e6eb",
    background="#10141a",
    surface="#171c24",
    panel="#202733",
    success="#63c174",
    warning="#e8a33d",
    error="#e5484d",
    variables={"footer-key-foreground": "#f2b84b", "border": "#2d3646", "border-blurred": "#2d3646"},
)
