"""Check what can be checked before a process starts or a byte is written."""
