"""How vLLM accounts for a GPU's memory, by its version: weights, the peak it profiles, and the KV pool. Pure."""
