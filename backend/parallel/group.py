"""Group: the ranks of one model as one of them sees them. What they compute between two collectives is the model's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """One rank's end of the group; called from the one thread that computes.

    Every rank makes the same calls in the same order, with tensors of one shape and dtype, contiguous and on its own
    device. A call returns when the result may be used by what this rank does next on its device. Where another rank is
    lost, it raises DeviceLostError: no later call can work, and the group has to be made again.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> None:
        """Sums `x` over all ranks, in place; every rank ends with the same bits."""
        ...

    def gather(self, x: Tensor) -> Tensor | None:
        """[size, *x.shape], in order of ranks, on rank 0; None on every other."""
        ...

    def close(self) -> None:
        """Leaves the group; no call follows."""
        ...
