"""`python -m backend.library.derive_child SOURCE TARGET`: writes config and tokenizer of SOURCE into TARGET.

The only file of the library that imports transformers, and with it torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.library.gguf_header import read_gguf_header

# Tokenizers that split digits before anything else. transformers' conversion from GGUF leaves that step out, and so
# would join the line breaks or spaces before a number as the model never saw them in training.
_DIGIT_SPLITTING = frozenset({"smollm", "starcoder"})
# A GGUF file has no sampling defaults; these are ours, by the family that the file names. At temperature 1 the small
# SmolLM2 rambles, at its makers' 0.2 it repeats itself.
_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "smollm2": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
}


def main(source: Path, target: Path) -> None:
    """Fill `target` from a GGUF file or a safetensors folder."""
    if source.is_file():
        with tempfile.TemporaryDirectory() as lone:
            # A link in a folder of its own: files that lie beside the user's GGUF must not mix in.
            (Path(lone) / "model.gguf").symlink_to(source.absolute())
            _derive_gguf(Path(lone), target)
    else:
        _derive_folder(source, target)


def _derive_gguf(folder: Path, target: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    fields = read_gguf_header(folder / "model.gguf").values
    config = AutoConfig.from_pretrained(folder, gguf_file="model.gguf")
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if isinstance(architecture, str):
        config.architectures = [architecture]
    # Quantized tensors have no dtype of their own; the models behind them are trained in bfloat16.
    stored = fields.get("general.file_type")
    config.dtype = "float32" if stored == 0 else "float16" if stored == 1 else "bfloat16"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    generation = GenerationConfig.from_model_config(config)
    generation.update(**_DEFAULTS.get(str(fields.get("general.basename")), {}))
    generation.save_pretrained(target)
    _finish_tokenizer(target, fields)


def _derive_folder(source: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _finish_tokenizer(target: Path, fields: Mapping[str, object]) -> None:
    if fields.get("tokenizer.ggml.pre") in _DIGIT_SPLITTING:
        path = target / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        split = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [split, tokenizer["pre_tokenizer"]],
        }
        path.write_text(json.dumps(tokenizer, ensure_ascii=False))
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    # What only says where and how it was made, and a length that stands for "unknown".
    for local in ("is_local", "local_files_only", "backend", "model_max_length"):
        settings.pop(local, None)
    if "tokenizer.ggml.add_bos_token" in fields:
        settings["add_bos_token"] = bool(fields["tokenizer.ggml.add_bos_token"])
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
