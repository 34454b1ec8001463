"""What lies in a model's folder: which files are its weights, and whether all of them are there. Reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

from backend.errors import BrokenModelError, ModelNotFoundError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What a tokenizer.json can be made of, where there is none.
OLDER_TOKENIZERS = (
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    "tekken.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_JSON_LIMIT = 64 << 20


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises BrokenModelError for anything else, or for more than 64 MiB."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise BrokenModelError(f"{path} is broken.", f"It has more than {_JSON_LIMIT >> 20} MiB.")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModelError(f"{path} cannot be read.", str(error), "Fetch the model again.") from error
    if not isinstance(value, dict):
        raise BrokenModelError(f"{path} is broken.", "It holds no JSON object.", "Fetch the model again.")
    return value


def index_map(path: Path) -> dict[str, str]:
    """Tensor name to shard name, from an index file. Raises BrokenModelError; a shard's name holds no folder."""
    mapping = read_json(path).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise BrokenModelError(f"{path} is broken.", "It has no weight_map.", "Fetch the model again.")
    shards: dict[str, str] = {}
    for tensor, shard in mapping.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BrokenModelError(f"{path} is broken.", f"It places {tensor} in {shard!r}.", "Fetch the model again.")
        shards[tensor] = shard
    return shards


def safetensors_weights(folder: Path, names: list[str] | None = None) -> list[str]:
    """Names of the safetensors files that make up the model in `folder`.

    `names` are the folder's files, where they are known from elsewhere (a repository not yet downloaded).
    Raises UnsupportedModelError where the weights are pickles only, ModelNotFoundError where there are none.
    """
    present = names if names is not None else sorted(path.name for path in folder.iterdir())
    if INDEX in present:
        return sorted(set(index_map(folder / INDEX).values()))
    if SINGLE in present:
        return [SINGLE]
    others = [name for name in present if name.endswith(".safetensors") and name != "consolidated.safetensors"]
    if len(others) == 1 and not others[0].startswith("adapter_model"):
        return others
    if others and any(name.startswith("adapter_model") for name in others):
        raise UnsupportedModelError(
            f"{folder.name} is an adapter, not a model.",
            "It has adapter_model.safetensors only.",
            "Name its base model.",
        )
    if others:
        raise UnsupportedModelError(
            f"{folder.name} has several safetensors files and no {INDEX}.",
            f"They are {', '.join(others[:4])}.",
        )
    raise no_weights(folder.name, present)


def no_weights(name: str, present: list[str]) -> UnsupportedModelError | ModelNotFoundError:
    """The error for a model without safetensors files, given the names that it does have."""
    pickles = [entry for entry in present if entry.endswith(_PICKLES)]
    if pickles:
        return UnsupportedModelError(
            f"{name} has its weights as pickles only ({pickles[0]}).",
            "A pickle can run any code when it is read, so shardwise reads safetensors and GGUF only.",
            "Choose a repository with safetensors files, or convert this one to safetensors.",
        )
    return ModelNotFoundError(
        f"{name} holds no model.", "There are no safetensors files and no GGUF file.", "Check the name."
    )


def missing_shards(folder: Path, shards: list[str]) -> list[str]:
    """Those of `shards` that are not in `folder`."""
    return [shard for shard in shards if not (folder / shard).is_file()]


def only_gguf(name: str, folder: Path) -> Path | None:
    """The GGUF file of a folder without safetensors; None where it has none. Raises ModelNotFoundError for several."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors*")):
        return None
    if len(files) > 1:
        raise ModelNotFoundError(
            f"{name} holds {len(files)} GGUF files.", hint=f"Name one of them, such as {files[0]}."
        )
    return files[0]


def config_of(name: str, folder: Path) -> Path:
    """The folder's config.json. Raises ModelNotFoundError where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(f"{name} holds no model.", "There is no config.json in it.", "Name another folder.")
    return path


def complete_shards(name: str, folder: Path) -> list[str]:
    """The folder's safetensors files. Raises BrokenModelError where one is missing, and as `safetensors_weights`."""
    shards = safetensors_weights(folder)
    missing = missing_shards(folder, shards)
    if missing:
        raise BrokenModelError(
            f"{name} is not complete.",
            f"{len(missing)} of {len(shards)} weight files are missing, such as {missing[0]}.",
            "Fetch the model again.",
        )
    return shards
