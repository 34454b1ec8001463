"""The matrix of architectures: each causal language model type with a tp_plan, against transformers."""
