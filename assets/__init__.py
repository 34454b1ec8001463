"""Data files that ship with shardwise."""
