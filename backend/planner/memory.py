"""Memory of one rank by term, and what a pool of pages holds: formulas only; deciding is `decide`'s."""

from __future__ import annotations

from collections.abc import Sequence

from backend.planner.model_facts import ModelFacts
from kvcache.layout import CacheLayout
from kvcache.page_table import PageTable
from quant import weight_sizes as sizes
from quant.weight_sizes import Storage, stored_bytes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_MIB = 1 << 20
# What a process that computes on a processor holds beside weights, pages and a step's tensors: interpreter, torch,
# transformers, numba and the kernels it has compiled. Measured by `python -m tests.fit.measured --base` with torch 2.13
# and Python 3.11: 551 to 560 MiB, of which 240 are the libraries' files, in the engine's process and in a rank's of its
# own alike, with 1 to 64 threads, in bfloat16 and float32, with AVX-512 and AVX2. A machine's first start compiles some
# kernels, which keeps 10 to 40 more.
LIBRARIES_CPU = 556 * _MIB
# What the library that multiplies int8 and nf4 weights brings along, measured so.
_BITS_AND_BYTES_CPU = 39 * _MIB
# What a process that computes on a GPU holds of main memory: assumed.
LIBRARIES_BESIDE_GPU = 700 * _MIB
# On the device: the CUDA context, the libraries' workspaces, and what torch's allocator keeps between
# tensors.
LIBRARIES_CUDA = 900 * _MIB
# What NCCL and its kin hold on a GPU beside that. vLLM's logs tell 1.8 GiB more for two H100 than for one, whose switch
# adds up in memory of its own, and 0.1 to 0.4 GiB for RTX 4090, A100 and L40S.
_COMMUNICATION_SWITCH, _COMMUNICATION = 1850 * _MIB, 400 * _MIB
# What Gloo holds of a process beside the message.
_COMMUNICATION_CPU = 16 * _MIB
# The sampler's temporaries: bytes per logit of a block of rows, and the most logits in a block on a GPU.
_SAMPLER_BYTES, _SAMPLER_LOGITS = 24, 1 << 24


def libraries_bytes(weight_format: str, cuda: bool) -> int:
    """What the libraries hold of a rank's device."""
    if cuda:
        return LIBRARIES_CUDA
    return LIBRARIES_CPU + (_BITS_AND_BYTES_CPU if weight_format in ("int8", "nf4") else 0)


def weights_bytes(facts: ModelFacts, dtype: str, weight_format: str = "model", cuda: bool = False) -> int:
    """Every linear by its format's own formula, and the other parameters in the dtype."""
    storage = Storage(dtype, cuda)
    linears = sum(count * stored_bytes(weight_format, shape, storage) for shape, count in facts.linears)
    counted = sum(count * shape.columns * (shape.depth + shape.bias) for shape, count in facts.linears)
    return linears + (facts.parameters - counted) * ELEMENT_BYTES[dtype]


def product_bytes(facts: ModelFacts, dtype: str, weight_format: str, cuda: bool) -> int:
    """The most that one linear's product takes beside its result, twice over: surgery merges gate and up."""
    storage = Storage(dtype, cuda)
    stored = [shape for shape, _ in facts.linears if not shape.kept]
    return 2 * max(
        (sizes.product_bytes(weight_format, shape.columns, shape.depth, storage) for shape in stored), default=0
    )


def communication_bytes(hidden: int, dtype: str, step_tokens: int, cuda: bool, switched: bool) -> int:
    """What a rank of several holds for adding up and for one message of a full step.

    switched: the GPUs are joined by a switch that adds up itself (NVSwitch from compute capability 9.0 on).
    """
    message = step_tokens * hidden * ELEMENT_BYTES[dtype]
    if not cuda:
        return _COMMUNICATION_CPU + message
    return (_COMMUNICATION_SWITCH if switched else _COMMUNICATION) + message


def activation_bytes(
    facts: ModelFacts, dtype: str, step_tokens: int, max_sequences: int, cuda: bool, samples: bool = True
) -> int:
    """The peak of one step; `samples` says whether this rank chooses the tokens.

    Per token of the step, in the dtype: the MLP's gate, up and product, six copies of the hidden state
    (residual, norms, in and out), and the query with the attention's output. Per sequence: its logits in the
    dtype and in float32. Then the sampler's temporaries, a row at a time on CPU.
    """
    query = max(
        (heads * (layer.key_size + layer.value_size) for heads, layer in zip(facts.heads, facts.layers, strict=True)),
        default=0,
    )
    element = ELEMENT_BYTES[dtype]
    per_token = (3 * facts.intermediate + 6 * facts.hidden + query) * element
    logits = max_sequences * facts.vocabulary
    if not samples:
        return step_tokens * per_token + logits * element
    sampled = min(logits, max(_SAMPLER_LOGITS, facts.vocabulary)) if cuda else facts.vocabulary
    return step_tokens * per_token + logits * (4 + element) + sampled * _SAMPLER_BYTES


def pages_of_context(layout: CacheLayout, tokens: int, step_tokens: int) -> int:
    """Most pages that one sequence of `tokens` positions holds at once, over all groups, as the cache counts them."""
    return sum(
        PageTable(group.page_tokens, group.window, group.chunked).most_pages(tokens, step_tokens)
        for group in layout.groups
    )


def context_of_pages(layout: CacheLayout, pages: int, step_tokens: int, limit: int) -> int:
    """The longest context up to `limit` that `pages` hold; 0 where they hold none.

    A group takes a page for every `page_tokens` positions until it has the most it ever needs. Between the lengths at
    which groups have that, `_longest` solves what the growing ones share.
    """
    sizes = [group.page_tokens for group in layout.groups]
    most = [
        PageTable(group.page_tokens, group.window, group.chunked).most_pages(limit, step_tokens)
        for group in layout.groups
    ]
    growing = sorted(zip(sizes, most, strict=True), key=lambda group: group[0] * group[1])
    settled = 0
    while growing:
        size, count = growing[0]
        longest = _longest([one for one, _ in growing], pages - settled)
        if longest < size * count:
            return min(longest, limit)
        settled += count
        growing = growing[1:]
    return limit


def _longest(sizes: Sequence[int], pages: int) -> int:
    """The most positions n for which the sum of ceil(n / size) is at most `pages`; sizes are powers of two.

    Whole blocks of the largest size hold whole pages of the others; what is left of the budget after one more page of
    the largest goes to the smaller ones, which it cannot fill to another such block.
    """
    length, left = 0, pages
    for largest in sorted(set(sizes), reverse=True):
        smaller = [size for size in sizes if size <= largest]
        blocks, left = divmod(left, sum(largest // size for size in smaller))
        length += blocks * largest
        left -= smaller.count(largest)
        if left < 0:
            break
    return max(0, length)
