"""A config file and overrides to a checked config."""
