"""The processes of a run: which ones, how they start, exchange values, stop and fail."""
