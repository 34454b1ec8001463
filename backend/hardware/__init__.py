"""What this machine has: memory, processors, GPUs. No torch."""
