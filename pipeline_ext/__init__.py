"""Beyond one machine: peers and pipeline stages (nothing yet; the single-machine server is complete without it)."""
