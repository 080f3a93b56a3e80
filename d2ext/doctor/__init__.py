"""Check this machine's installation."""
