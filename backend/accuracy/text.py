"""The text that accuracy is measured on: a public-domain novel among our assets, as running prose. No torch."""

from __future__ import annotations

import re
from importlib import resources

from backend.library.files import ModelFiles
from backend.tokenizer import ModelTokenizer

_BEGINNING = "Alice was beginning"


def bundled_prose() -> str:
    """The novel from its first sentence on, its paragraphs on one line each, as books are written today."""
    text = (resources.files("assets") / "text" / "alice29.txt").read_text(encoding="utf-8")
    paragraphs = re.split(r"\n\s*\n", text[text.index(_BEGINNING) :])
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


def text_tokens(files: ModelFiles, most: int) -> list[int]:
    """The first `most` tokens of the text, or all that it has, begun as the model's prompts begin."""
    # A token has at least a character; the novel is not tokenized whole for its beginning, where few have a dozen.
    return ModelTokenizer(files.folder).encode_prompt(bundled_prose()[: 12 * most])[:most]
