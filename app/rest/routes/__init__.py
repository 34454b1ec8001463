"""The endpoint's routes, one module a family."""
