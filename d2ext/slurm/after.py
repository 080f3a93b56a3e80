"""`python -m d2ext.slurm.after FOLDER STATUS`: the batch script's last line, behind srun."""

import os
import sys

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

if __name__ == "__main__":
    os.environ["SUBMITIT_FOLDER"], status = sys.argv[1], int(sys.argv[2])
    submitted = JobEnvironment().paths.submitted_pickle
    DelayedSubmission.load(submitted).function.step_ended(status)
