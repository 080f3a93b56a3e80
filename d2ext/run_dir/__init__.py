"""The run directory: its lock, names, logs, metadata and results."""
