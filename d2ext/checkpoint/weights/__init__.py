"""Initial weights: files of several libraries, read safely, and their names."""
