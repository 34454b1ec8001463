"""What a cached page depends on beside its tokens, as a namespace; and what an API key's pages are called. No torch.

Two engines with one namespace compute and store the same bytes for the same tokens. Keys of pages are rooted in it, so
that pages of different models, formats or versions never meet, wherever they lie.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from backend.library.files import ModelFiles
from backend.planner.plan import Plan
from kvcache.layout import CacheLayout

# Counts changes to what a page's bytes mean that nothing else below would show.
PAGE_VERSION = 1
OWNER_BYTES = 16
# Headers of safetensors files are shorter, and those of GGUF files hold their vocabulary.
HEAD_BYTES = 8 << 20
# What multiplies the weights of a format, beside torch and our own kernels.
_LIBRARIES = {"int8": ("bitsandbytes",), "nf4": ("bitsandbytes",)}
SAMPLES = 64
SAMPLE_BYTES = 64 << 10


def namespace(files: ModelFiles, plan: Plan, layout: CacheLayout, kernel_orders: Sequence[str]) -> bytes:
    """32 bytes over all that decides what K and V of a token are and how a page holds them.

    That is: the weights (`weights_identity`), config.json in full (RoPE and the rest), dtype, weight and KV formats,
    the layout, each slot's order inside a page, and what computes: its kind of device, its versions. Raises OSError for
    unreadable files.
    """
    facts = {
        "page": PAGE_VERSION,
        "versions": [_version(name) for name in ("shardwise", "transformers", *_LIBRARIES.get(plan.weight_format, ()))],
        "weights": weights_identity(files).hex(),
        "config": hashlib.sha256((Path(files.folder) / "config.json").read_bytes()).hexdigest(),
        "device": plan.ranks[0].device.partition(":")[0],
        "dtype": plan.dtype,
        "weight_format": plan.weight_format,
        "kv_format": plan.kv_format,
        "architecture": plan.architecture,
        "layout": asdict(layout),
        "orders": list(kernel_orders),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).digest()


def weights_identity(files: ModelFiles) -> bytes:
    """32 bytes that change with the weights, without reading them all.

    Of each file: its name, size, time of modification, its first 8 MiB (with the header, so names, types and places of
    all tensors) and 64 blocks of 64 KiB spread over the rest. So another model, revision, quantization or fine-tune is
    seen, and so is a file written again. Not seen: an edit in place of other blocks only, after which somebody sets the
    time back; and a copy with a new time counts as new weights.
    """
    digest = hashlib.sha256()
    for name in sorted(files.weights, key=os.path.basename):
        digest.update(_file_identity(Path(name)))
    return digest.digest()


def page_secret(secret: bytes) -> bytes:
    """What signs pages on disk, made of the installation's secret: 32 bytes."""
    return _derive(secret, "sign pages on disk")


def salt(secret: bytes, api_key_id: str) -> bytes:
    """The `cache_salt` of an API key's requests: 32 bytes that nobody can tell without the installation's secret."""
    return _derive(secret, "separate cached pages", api_key_id)


def owner_tag(secret: bytes, api_key_id: str) -> bytes:
    """The `owner` of an API key's requests, by which its pages on disk are found: 16 bytes."""
    return _derive(secret, "name the owner of pages", api_key_id)[:OWNER_BYTES]


def _derive(secret: bytes, purpose: str, about: str = "") -> bytes:
    return hmac.digest(secret, f"shardwise: {purpose}\0{about}".encode(), "sha256")


def _file_identity(path: Path) -> bytes:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        digest = hashlib.sha256(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
        digest.update(file.read(HEAD_BYTES))
        for start in _samples(found.st_size):
            digest.update(os.pread(file.fileno(), SAMPLE_BYTES, start))
    return digest.digest()


def _samples(size: int) -> Iterator[int]:
    """Where in a file of `size` bytes blocks are read: evenly behind its head, or all of a short one."""
    rest = size - HEAD_BYTES
    if rest <= SAMPLES * SAMPLE_BYTES:
        yield from range(HEAD_BYTES, size, SAMPLE_BYTES)
    else:
        yield from (HEAD_BYTES + (rest - SAMPLE_BYTES) * index // (SAMPLES - 1) for index in range(SAMPLES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _plain(value: object) -> str:
    """Enums of the layout, by name."""
    return str(value)
