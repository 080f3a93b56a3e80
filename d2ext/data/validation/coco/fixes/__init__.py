"""The fixes of `--fix`, by subject."""
