"""Dataset dicts stored as arrays, and their cache."""
