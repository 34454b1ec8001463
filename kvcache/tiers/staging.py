"""Staging: a few pages of host memory through which pages pass between device and disk."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from kvcache.tiers.host import HostTier

# Pages that may wait to be written, so that a burst of stores is none that fails; and those that readers work ahead.
OUTGOING_PAGES = 64
INCOMING_PAGES = 16


class Staging:
    """A bounded set of pages that are taken and given back, by any thread."""

    def __init__(self, pages: int, page_bytes: int, device: torch.device) -> None:
        self._pages = HostTier(pages, page_bytes, device)
        self._free = list(range(pages))
        self._change = threading.Condition()

    def take(self, patience: float | None = None) -> int | None:
        """A page's index; waits until one is free, or for `patience` seconds and then gives None."""
        with self._change:
            self._change.wait_for(lambda: self._free, patience)
            return self._free.pop() if self._free else None

    def give(self, index: int) -> None:
        with self._change:
            self._free.append(index)
            self._change.notify()

    def page(self, index: int) -> Tensor:
        """[page_bytes] uint8, a view."""
        return self._pages.page(index)

    def close(self) -> None:
        self._pages.close()
