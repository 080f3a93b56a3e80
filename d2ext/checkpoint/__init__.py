"""Checkpoints and initial weights: their files, when they are written, what they hold."""
