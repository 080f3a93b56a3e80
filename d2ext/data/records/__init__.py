"""Dataset dicts as arrays, and the cache that keeps them."""
