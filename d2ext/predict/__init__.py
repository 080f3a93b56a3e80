"""A trained model on photos and videos."""
