"""From dataset dicts to batches, the same in every run."""
