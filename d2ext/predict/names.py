"""Names that the command line of `d2ext predict` and its writers share."""

# Formats of annotations, and their file or folder in the output folder.
ANNOTATIONS = {
    "coco": "coco.json",
    "via": "via.json",
    "labelme": "labelme",
    "yolo": "yolo",
    "yolo_seg": "yolo_seg",
    "voc": "voc",
    "cvat": "cvat.xml",
}
RANKS = ("uncertain",)
