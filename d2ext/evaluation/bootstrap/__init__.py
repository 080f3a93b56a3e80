"""Intervals of results and of their differences, from draws of the images of a test set."""
