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
    """Cancel jobs, whose trainers save first; yield what was done, in words.

    Raises:
        UserError: Slurm refuses for some jobs; the others are canceled.
    """
    refused = []
    for record in records:
        if is_over(record):
            yield f"{record.run_dir}: job {record.submission.job} is over"
            continue
        record.cancel()  # first, so that it does not come back
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
        return f"noted; process {job.job} of {job.host} is to be ended there"
    return f"job {job.job} is cancelled"
