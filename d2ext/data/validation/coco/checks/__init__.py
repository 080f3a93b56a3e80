"""Checks of a COCO file, by subject."""
