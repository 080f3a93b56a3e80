"""Augmentations: of single images, as Detectron2 `Augmentation`s, and copy-paste between two."""
