"""Workers: one process per rank of a model that several ranks compute, and the engine's side of them."""
