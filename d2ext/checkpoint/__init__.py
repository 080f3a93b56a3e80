"""Checkpoints and initial weights: files, contents, and when to write them."""
