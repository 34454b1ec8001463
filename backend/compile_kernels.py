"""A program: compiles the processor's kernels into the cache and ends. When to run it is `kernel_cache`'s to say."""

from __future__ import annotations

import importlib

from backend.parentage import die_with_parent

# They compile when they are imported; what few are left compile at their first call.
MODULES = (
    "quant.cpu.linear",
    "backend.surgery.processor_kernels",
    "kvcache.attention.processor",
    "backend.parallel.exchange",
)


def main() -> None:
    die_with_parent()
    for module in MODULES:
        importlib.import_module(module)


if __name__ == "__main__":
    main()
