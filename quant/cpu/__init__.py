"""Processor kernels: tile products as LLVM code through numba, and the packed linear built on them."""
