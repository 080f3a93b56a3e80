"""What `--fix` changes in a COCO file, by subject."""
