"""Annotation files from one format to another, by way of COCO."""
