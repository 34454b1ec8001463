"""QuietGroup: a group that is not asked while a model is put together, when each rank probes its modules by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from backend.parallel.group import Group


class QuietGroup:
    """Passes calls on to another group; while quiet, every rank is answered as if the others had nothing to add."""

    def __init__(self, group: Group) -> None:
        self._group, self._quiet = group, False

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, x: Tensor) -> None:
        if not self._quiet:
            self._group.all_reduce(x)

    def gather(self, x: Tensor) -> Tensor | None:
        if self._quiet:
            return x.expand(self.size, *x.shape)
        return self._group.gather(x)

    def close(self) -> None:
        self._group.close()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What ranks do inside need not be the same on all of them."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
