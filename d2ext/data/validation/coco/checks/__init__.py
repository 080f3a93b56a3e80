"""The checks of a COCO file, by subject."""
