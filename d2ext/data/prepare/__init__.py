"""Prepare standard datasets: copy, download and check them."""
