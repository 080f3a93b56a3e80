"""`python -m d2ext.slurm.after FOLDER STATUS`: the batch script's last line, after srun.

The batch scripts of queued jobs name this module, so it must not be renamed.
"""

import os
import sys
from typing import NoReturn

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from d2ext.errors import run_tool


def main() -> NoReturn:
    """Let the job's `Training` check how its tasks ended."""
    os.environ["SUBMITIT_FOLDER"], status = sys.argv[1], int(sys.argv[2])
    submitted = JobEnvironment().paths.submitted_pickle
    DelayedSubmission.load(submitted).function.on_step_exit(status)


if __name__ == "__main__":
    run_tool(main)
