"""Load dataset dicts as batches, reproducibly in every run."""
