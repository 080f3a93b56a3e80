"""Datasets: declared in a config, registered in a process, joined and balanced."""
