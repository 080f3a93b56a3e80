"""Load a config file, apply overrides, and check the result."""
