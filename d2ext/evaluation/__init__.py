"""Run a model on a dataset, and compute metrics from its detections."""
