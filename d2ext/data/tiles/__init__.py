"""Cut large photos into overlapping tiles: the plan, masks as runs, annotations and records."""
