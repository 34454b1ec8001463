"""TensorOffer: what a machine says of a model that others may fetch from it, and how they find the same one at home.

Serving it is `tensor_server`'s, fetching `tensor_fetch`'s.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backend.errors import ShardwiseError
from backend.library.files import ModelFiles
from backend.library.folders import INDEX, OLDER_TOKENIZERS
from backend.library.gguf_header import read_gguf_header
from backend.library.header import TensorEntry
from backend.library.locations import cache_home
from backend.library.resolve import resolve
from backend.library.safetensors_header import read_safetensors_header

# What of a model's folder goes along: data that the library reads, never code.
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
    *OLDER_TOKENIZERS,
)
MOST_FILES = 4096
MOST_TEXT_BYTES = 256 << 20
MOST_HEADER_BYTES = 512 << 20
_WEIGHT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+() -]{0,250}\.(?:safetensors|gguf)", re.ASCII)
_BLOB_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SAMPLES, _SAMPLE_BYTES = 16, 4096


class BrokenOfferError(ShardwiseError):
    """An offer of tensors contradicts itself, or asks for what no offer may."""

    code = "broken_offer"


class OfferedWeights(Struct, frozen=True):
    """One weight file.

    Attributes:
        name: without folders.
        size: bytes.
        header: bytes before the first tensor's.
        header_sha256: of those.
        sample_sha256: of some stretches of the file, see `sampled`.
        content_sha256: of all of it, where the hub told; else empty.
    """

    name: str
    size: int
    header: int
    header_sha256: bytes
    sample_sha256: bytes
    content_sha256: bytes = b""


class OfferedText(Struct, frozen=True):
    """One small file of the model's folder: config, tokenizer."""

    name: str
    size: int
    sha256: bytes


class TensorOffer(Struct, frozen=True):
    """A model on another machine. Its files are asked for by number: weights first, then texts.

    Attributes:
        model: the name under which it is served.
        address: HOST:PORT of the server.
        machine: id of the machine where that runs; empty for the head.
    """

    model: str
    format: Literal["safetensors", "gguf"]
    weights: tuple[OfferedWeights, ...]
    texts: tuple[OfferedText, ...]
    address: str = ""
    machine: str = ""

    @property
    def digest(self) -> str:
        """Names the content, wherever it is offered: 32 hexadecimal digits."""
        content = msgspec.msgpack.encode((self.format, self.weights, self.texts))
        return hashlib.sha256(content).hexdigest()[:32]


_decoder: msgspec.msgpack.Decoder[TensorOffer] = msgspec.msgpack.Decoder(TensorOffer)


def encode_offer(offer: TensorOffer) -> bytes:
    """As it travels in LoadStage."""
    return msgspec.msgpack.encode(offer)


def decode_offer(data: bytes) -> TensorOffer:
    """An offer, every name and number of which has been checked. Raises BrokenOfferError."""
    try:
        offer = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BrokenOfferError("An offer of tensors cannot be read", f"{error}.") from None
    if complaint := _complaint(offer):
        raise BrokenOfferError(f"The offer of {offer.model[:200]!r} is not valid", f"{complaint}.")
    return offer


def make_offer(files: ModelFiles, address: str = "") -> TensorOffer:
    """What can be said of the model without reading its weights but for samples; a fraction of a second.

    Raises:
        BrokenModelError: a header is broken.
        BrokenOfferError: files of names that no offer may have, or files that are themselves fetched in part.
    """
    weights = tuple(_offered(Path(path), files.format) for path in files.weights)
    if _has_holes(files):
        raise BrokenOfferError(f"{files.name} was fetched in part", "Its files have holes.", "Name the model itself.")
    texts = tuple(_text(path) for path in text_paths(files))
    offer = TensorOffer(files.name, files.format, weights, texts, address)
    if complaint := _complaint(offer):
        raise BrokenOfferError(f"{files.name} cannot be offered to peers", f"{complaint}.")
    return offer


def text_paths(files: ModelFiles) -> tuple[Path, ...]:
    """The small files that are there, in the order of an offer's texts."""
    return tuple(path for name in TEXTS if (path := Path(files.folder) / name).is_file())


def tensors_of(path: Path, kind: Literal["safetensors", "gguf"]) -> tuple[TensorEntry, ...]:
    """The tensors that a weight file's header names. Raises BrokenModelError."""
    return read_gguf_header(path).tensors if kind == "gguf" else read_safetensors_header(path)


def recognized(offer: TensorOffer) -> ModelFiles | None:
    """This machine's own files of the offered model; None where it has none, or others of the same name.

    The configuration may still differ: `same_config` tells.
    """
    try:
        files = resolve(offer.model)
    except ShardwiseError:
        return None
    if files.format != offer.format or len(files.weights) != len(offer.weights) or _has_holes(files):
        return None
    here = zip(files.weights, offer.weights, strict=True)
    return files if all(_is_same(Path(path), offered) for path, offered in here) else None


def same_config(offer: TensorOffer, files: ModelFiles) -> bool:
    """Whether this machine's config.json has the offered bytes."""
    own = Path(files.folder) / "config.json"
    return own.is_file() and _text(own) in offer.texts


def fetched_home() -> Path:
    """Where models lie of which only some tensors are here."""
    return cache_home() / "fetched"


def sampled(path: Path) -> bytes:
    """SHA-256 of stretches spread evenly over the file, its end included: cheap, and unlike between fine-tunes."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as source:
        for number in range(_SAMPLES):
            source.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(source.read(_SAMPLE_BYTES))
    return digest.digest()


def _has_holes(files: ModelFiles) -> bool:
    """Whether these are files of which only some tensors were fetched, named by their path."""
    home = fetched_home().resolve()
    return any(Path(path).resolve().is_relative_to(home) for path in files.weights)


def _offered(path: Path, kind: Literal["safetensors", "gguf"]) -> OfferedWeights:
    size = path.stat().st_size
    header = min((tensor.start for tensor in tensors_of(path, kind)), default=size)
    return OfferedWeights(path.name, size, header, _head_sha256(path, header), sampled(path), _known_sha256(path))


def _head_sha256(path: Path, count: int) -> bytes:
    with path.open("rb") as source:
        return hashlib.sha256(source.read(count)).digest()


def _known_sha256(path: Path) -> bytes:
    """The hub's cache keeps large files under their SHA-256, which was checked when they came."""
    target = path.resolve()
    known = target.parent.name == "blobs" and _BLOB_NAME.fullmatch(target.name) is not None
    return bytes.fromhex(target.name) if known else b""


def _is_same(path: Path, offered: OfferedWeights) -> bool:
    if path.name != offered.name or path.stat().st_size != offered.size:
        return False
    known = _known_sha256(path)
    if known and offered.content_sha256:
        return known == offered.content_sha256
    return _head_sha256(path, offered.header) == offered.header_sha256 and sampled(path) == offered.sample_sha256


def _text(path: Path) -> OfferedText:
    content = path.read_bytes()
    return OfferedText(path.name, len(content), hashlib.sha256(content).digest())


def _complaint(offer: TensorOffer) -> str:
    """Why no offer may look so; empty where it may."""
    names = [file.name for file in (*offer.weights, *offer.texts)]
    if not offer.weights or len(names) > MOST_FILES:
        return f"It has {len(offer.weights)} weight files and {len(names)} files in all"
    if len(set(names)) != len(names):
        return "Two of its files have the same name"
    for file in offer.weights:
        if _WEIGHT_NAME.fullmatch(file.name) is None:
            return f"A weight file is called {file.name[:80]!r}"
        if not 0 < file.header <= min(file.size, MOST_HEADER_BYTES):
            return f"{file.name} of {file.size} bytes has a header of {file.header}"
    for text in offer.texts:
        if text.name not in TEXTS:
            return f"A small file is called {text.name[:80]!r}"
        if not 0 <= text.size <= MOST_TEXT_BYTES:
            return f"{text.name} has {text.size} bytes"
    return ""


def at_address(offer: TensorOffer, address: str) -> TensorOffer:
    """The same, to be had there."""
    return replace(offer, address=address)
