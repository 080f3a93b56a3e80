"""Augmentations of single images, each a Detectron2 `Augmentation` that draws from numpy."""
