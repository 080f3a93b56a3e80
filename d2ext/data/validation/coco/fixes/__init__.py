"""Fixes that `--fix` applies, by subject."""
