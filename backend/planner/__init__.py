"""Deployment decisions as plain values and pure functions. No torch."""
