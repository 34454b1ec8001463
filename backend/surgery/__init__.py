"""Turns transformers' own model classes into servable ones: build, merge, fuse, load."""
