"""A run's dataset, as it is trained on, to look at."""
