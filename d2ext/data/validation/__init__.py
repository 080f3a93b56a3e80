"""Checks of what users give: COCO files and dataset dicts."""
