"""Images -> predictions -> pictures."""
