"""Draw ground truth and predictions."""
