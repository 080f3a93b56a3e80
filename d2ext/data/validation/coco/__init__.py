"""Check a COCO file and its images, and write a file without the errors.

`table.py` turns a file into arrays, `checks/` looks at these and at the images, `fixes/` changes
the content (shapes follow their pixels); `check_file.py` is `d2ext check`, `findings_page.py` its
page. A check is a function from content to findings. Nothing here imports torch.
"""
