"""ModelHeader: what a model's files say they hold, tensor by tensor, after every number in them has been checked."""

from __future__ import annotations

from dataclasses import dataclass

from backend.errors import BrokenModelError


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as stored.

    Attributes:
        name: as in the file; GGUF has names of its own, such as `blk.0.attn_q.weight`.
        dtype: the file format's word, such as BF16, F32 or Q4_1.
        shape: outermost dimension first, as torch has it, for both formats.
        file: absolute path of the file that holds it.
        start: first byte in that file.
        bytes: length in that file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """All of a model's tensors, and the numbers that memory is planned with.

    Attributes:
        model_type: transformers' word for the kind of model, such as llama.
        architecture: transformers' causal language model class, such as LlamaForCausalLM.
        tensors: in the order of files and of offsets in them.
        parameters: elements of all tensors as stored (tied embeddings once).
        bytes: bytes of all tensors as stored.
    """

    model_type: str
    architecture: str
    tensors: tuple[TensorEntry, ...]
    parameters: int
    bytes: int


def broken(file: str, why: str) -> BrokenModelError:
    """The error for a file whose contents contradict themselves."""
    return BrokenModelError(f"{file} is broken.", why, "It was not downloaded or copied completely; fetch it again.")
