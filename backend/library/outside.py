"""Which tensors of a checkpoint are not the text model's, by their names: encoders of images and sound, what predicts
ahead. No torch."""

from __future__ import annotations

import re

_ENCODERS = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|vit|image_\w+|img_\w+|audio\w*|sound\w*|speech\w*|embed_vision|embed_audio|"
    r"multi_modal_projector|multimodal_projector|mm_projector|mlp1|connector|resampler|patch_\w+|projector|"
    r"vit_large_projector|aligner|talker|token2wav|code2wav|siglip\w*|perceiver\w*)(?:\.|$)"
)
_AHEAD = re.compile(r"(?:^|\.)(?:mtp\w*|nextn\w*|eh_proj|enorm|hnorm)(?:\.|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def is_encoder(name: str) -> bool:
    """Whether the tensor is one of an encoder of images or sound, or of what carries their results over."""
    return _ENCODERS.search(name) is not None


def predicts_ahead(name: str, layers: int) -> bool:
    """Whether the tensor is one of the layers, beyond the model's own, that guess further tokens."""
    if is_encoder(name):
        return False
    layer = _LAYER.search(name)
    return _AHEAD.search(name) is not None or (layer is not None and int(layer[1]) >= layers)
