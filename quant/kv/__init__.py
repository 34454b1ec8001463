"""KV formats, one file each."""
