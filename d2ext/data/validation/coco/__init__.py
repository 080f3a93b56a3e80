"""Check a COCO file and its images, and write a copy without the errors.

`table.py` reads a file into arrays, `checks/` validates these and the images, and `fixes/` edits
the content (when an image's size is corrected, its shapes move along). `check_file.py` implements
`d2ext check`, and `findings_page.py` its HTML report. A check is a function that maps content to
findings. Nothing here imports torch.
"""
