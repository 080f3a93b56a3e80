"""Ends jobs for good."""

import os
import signal
from collections.abc import Iterator, Sequence

from d2ext.slurm.queue import cancel_jobs
from d2ext.slurm.record import Record
from d2ext.slurm.status import is_over


def cancel(records: Sequence[Record]) -> Iterator[str]:
    """Cancels jobs, whose trainers save what they have; yields what was done, in words."""
    for record in records:
        job = record.submission["job"]
        if is_over(record):
            yield f"{record.run_dir}: job {job} is over"
            continue
        record.cancel()  # so that it does not come back
        if record.submission["cluster"] == "local":
            os.kill(int(job), signal.SIGTERM)
        else:
            cancel_jobs([job])
        yield f"{record.run_dir}: job {job} is cancelled"
