"""Codecs of the KV formats in plain torch: the reference for every kernel that reads or writes them in place."""
