"""The terminal UI: a client of the server like any other."""
