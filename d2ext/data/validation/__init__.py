"""Validate input data: COCO files and dataset dicts."""
