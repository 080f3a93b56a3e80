"""The processes of a run: how they are found, start, exchange values, stop and fail."""
