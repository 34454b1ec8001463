"""The model library as the TUI offers it: what to choose from, and fetching. Finding and downloading are the library's."""
