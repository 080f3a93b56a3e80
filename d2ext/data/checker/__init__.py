"""What is wrong with a COCO file and its images, and a file in which it no longer is.

`columns.py` turns a file into arrays, `entries.py`, `shapes.py` and `statistics.py` look at these,
`files.py` at the images; `fix.py` mends, with `mend_entries.py`, `mend_annotations.py` and
`mend_sizes.py` (shapes go with their pixels); `run.py` is the tool, `page.py` its report. A check
is a function from content to findings. Nothing here imports torch.
"""
