"""Products of weights on a CUDA device, in Triton; each with a torch reference beside it."""
