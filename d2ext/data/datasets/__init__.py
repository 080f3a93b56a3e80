"""Datasets: declared in a config, registered in each process, joined and balanced."""
