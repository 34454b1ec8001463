"""Reference of the grouped expert kernels: plain torch, one expert after the other, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExpertMatrices:
    """The matrices of the experts that lie here; views of any strides.

    up: [experts, columns of the first product, hidden]; down: [experts, hidden, inner]; biases without the last
    dimension, or None.
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


def pair_outputs_reference(
    matrices: ExpertMatrices, activate: Callable[[Tensor], Tensor], x: Tensor, index: Tensor, first: int
) -> Tensor:
    """The output of each of a token's choices, [T * k, hidden] float32; zeros for experts that do not lie here.

    x: [T, hidden]; index: [T, k], numbered among all experts; first: the number of the first that lies here.
    """
    active, flat = index.shape[1], index.reshape(-1)
    outputs = torch.zeros(flat.shape[0], x.shape[1])
    for expert in range(matrices.up.shape[0]):
        pairs = (flat == first + expert).nonzero()[:, 0]
        product = x[pairs // active].float() @ matrices.up[expert].float().T
        if matrices.up_bias is not None:
            product += matrices.up_bias[expert].float()
        outputs[pairs] = activate(product) @ matrices.down[expert].float().T
        if matrices.down_bias is not None:
            outputs[pairs] += matrices.down_bias[expert].float()
    return outputs


def experts_reference(
    matrices: ExpertMatrices,
    activate: Callable[[Tensor], Tensor],
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    first: int,
) -> Tensor:
    """The weighted sum of each token's choices that lie here, [T, hidden] in x's type; weights: [T, k]."""
    outputs = pair_outputs_reference(matrices, activate, x, index, first)
    return (outputs.view(*index.shape, x.shape[1]) * weights.float()[:, :, None]).sum(1).to(x.dtype)
