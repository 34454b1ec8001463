"""Formats: how keys, values and weights are stored, with their kernels. Imports nothing of ours."""
