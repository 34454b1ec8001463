"""Checkpoints whose weights are packed: each method's tensors turned into plain weights, one file a method."""
