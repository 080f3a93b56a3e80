"""Run a job without Slurm: `python -m d2ext.slurm.local FOLDER` runs it on this machine.

The job is restarted when Slurm would requeue it. Jobs of one folder (seeds) run one at a time.
"""

import os
import subprocess
import sys
from pathlib import Path

import submitit
from filelock import FileLock
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller


class LocalExecutor(submitit.LocalExecutor):
    """Run submitit's local jobs so that they outlive the terminal, and restart them on request."""

    def _submit_command(self, command: str) -> submitit.LocalJob:
        parameters = self.parameters
        gpus = parameters["gpus_per_node"]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        env = os.environ | {
            "CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[:gpus]),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_TIMEOUT_S": str(parameters["timeout_min"] * 60),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "d2ext.slurm.local", str(self.folder)],
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return submitit.LocalJob(self.folder, str(process.pid), process=process)


def carry(folder: Path) -> None:
    """Run this process's job, and restart it as long as it asks for a requeue."""
    controller = Controller(folder)
    paths = JobPaths(folder, controller.pid)
    os.environ |= {"SUBMITIT_FOLDER": str(folder), "SUBMITIT_LOCAL_JOB_ID": controller.pid}
    status, starts = LOCAL_REQUEUE_RETURN_CODE, 0
    while status == LOCAL_REQUEUE_RETURN_CODE:  # the job itself counts its starts
        os.environ["SLURM_RESTART_COUNT"] = str(starts)
        controller.start_tasks()
        try:
            status = controller.wait()[0]
        finally:
            controller.kill_tasks()
        starts += 1
    training = DelayedSubmission.load(paths.submitted_pickle).function
    if status is None:
        training.on_step_exit(137, "its time limit expired before it had saved")
    training.on_step_exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    with FileLock(Path(sys.argv[1]) / "turn", poll_interval=1, fallback_to_soft=False):
        carry(Path(sys.argv[1]))
