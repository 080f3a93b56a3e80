"""Join the detections of a photo's tiles."""
