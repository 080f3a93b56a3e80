"""The training loop and its hooks, and a run from a checked plan to its results."""
