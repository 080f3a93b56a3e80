"""Check what is installed and what works on this machine."""
