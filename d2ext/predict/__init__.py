"""Apply a trained model to photos and videos."""
