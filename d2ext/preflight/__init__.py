"""Preflight checks: everything that can be checked before processes start or files are written."""
