"""Inspect a run's dataset as training sees it."""
