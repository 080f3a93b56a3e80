"""Cancel jobs."""

import os
import signal
from collections.abc import Iterator, Sequence

from d2ext.errors import UserError
from d2ext.slurm.pid import is_alive
from d2ext.slurm.queue import cancel_jobs
from d2ext.slurm.record import Record
from d2ext.slurm.status import is_over


def cancel(records: Sequence[Record]) -> Iterator[str]:
    """Cancel jobs, which save a checkpoint first; yield a line for each job.

    Raises:
        UserError: Slurm refuses to cancel some jobs; the others are canceled.
    """
    refused = []
    for record in records:
        if is_over(record):
            yield f"{record.run_dir}: job {record.submission.job} is over"
            continue
        record.cancel()  # first, so that the job is not requeued
        try:
            yield f"{record.run_dir}: {_end(record)}"
        except UserError as e:
            record.take_back()
            refused.append(str(e))
    if refused:
        raise UserError("; ".join(refused))


def _end(record: Record) -> str:
    job = record.submission
    if job.cluster == "slurm":
        cancel_jobs([job.job])
    elif is_alive(job):
        os.kill(int(job.job), signal.SIGTERM)
    else:
        return f"recorded; to end the job, kill process {job.job} on {job.host}"
    return f"job {job.job} is canceled"
