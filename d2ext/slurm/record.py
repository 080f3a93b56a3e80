"""Records of a submission and its job on the shared disk; each file has one writer.

```
<run directory>/slurm/<time of submission>/
  submission.json    at the submission: `Submission`
  attempts.json      by the job: `AttemptsRecord`
  cancelled          by `d2ext submit cancel`
  meet-<job>-<n>     by the first machine, in attempt n: `Rendezvous`
  failed-<job>-<n>   by another machine whose trainer failed: `MachineFailure`
```
"""

import time
from pathlib import Path

from d2ext.files import cache_dir
from d2ext.run_dir.schema import (
    UNSET,
    Attempt,
    AttemptsRecord,
    JobOutcome,
    Submission,
    read_record,
    write_record,
)


class Record:
    """Read and write the records of one submission of one run.

    Args:
        folder: `<run directory>/slurm/<time of submission>`.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    @property
    def run_dir(self) -> Path:
        """Return the run directory."""
        return self.folder.parent.parent

    @property
    def submission(self) -> Submission | None:
        """Return the submitted job, or None if it has not been submitted yet."""
        try:
            return read_record(self.folder / "submission.json", Submission)
        except FileNotFoundError:
            return None

    def submitted(self, submission: Submission) -> None:
        """Record the submitted job, and list the run for `status`."""
        write_record(self.folder / "submission.json", submission)
        index = index_file()
        index.parent.mkdir(parents=True, exist_ok=True)
        with open(index, "a") as f:
            f.write(f"{self.run_dir}\n")

    @property
    def attempts(self) -> list[Attempt]:
        """Return all starts of the job."""
        return self._read_attempts().attempts

    @property
    def outcome(self) -> JobOutcome | None:
        """Return the exit status and reason of a job that has ended, or None."""
        return self._read_attempts().outcome or None

    @property
    def requeues(self) -> int:
        """Return how often the job was restarted, by d2ext or anything else."""
        return max(0, len(self.attempts) - 1)

    def begin(self, number: int, nodes: str, checkpoint: int | None) -> None:
        """Add an attempt with the checkpoint at its start (`requeue_policy.newest`)."""
        start = Attempt(number=number, started=time.time(), nodes=nodes, checkpoint=checkpoint)
        self._write_attempts(AttemptsRecord([*self.attempts, start]))

    def end(self, why: str, status: int | None = None) -> None:
        """Record the end of the attempt and, if a status is given, the end of the job."""
        attempts = self.attempts
        if attempts:
            attempts[-1].ended, attempts[-1].why = time.time(), why
        outcome = UNSET if status is None else JobOutcome(status, why)
        self._write_attempts(AttemptsRecord(attempts, outcome))

    @property
    def cancelled(self) -> bool:
        """Return whether the user has canceled the job."""
        return (self.folder / "cancelled").exists()

    def cancel(self) -> None:
        """Record that the user has canceled the job, so that it is not requeued."""
        (self.folder / "cancelled").touch()

    def take_back(self) -> None:
        """Undo `cancel` after Slurm has refused it."""
        (self.folder / "cancelled").unlink(missing_ok=True)

    def _read_attempts(self) -> AttemptsRecord:
        try:
            return read_record(self.folder / "attempts.json", AttemptsRecord)
        except FileNotFoundError:
            return AttemptsRecord()

    def _write_attempts(self, record: AttemptsRecord) -> None:
        write_record(self.folder / "attempts.json", record)


def new_record(run_dir: Path, stamp: str) -> Record:
    """Create the folder of a submission; `stamp` is its name."""
    folder = run_dir.absolute() / "slurm" / stamp
    folder.mkdir(parents=True)
    return Record(folder)


def newest_record(run_dir: Path) -> Record | None:
    """Return the record of the last submission of a run, or None."""
    folders = sorted(p.parent for p in (run_dir.absolute() / "slurm").glob("*/submission.json"))
    return Record(folders[-1]) if folders else None


def find_records(run_dir: Path | None) -> list[Record]:
    """Return the newest records of a run and its seeds; by default, of all the user's runs."""
    if run_dir is None:
        index = index_file()
        lines = index.read_text().splitlines() if index.exists() else []
        folders = list(dict.fromkeys(map(Path, lines)))
    else:
        folders = [run_dir, *sorted(run_dir.glob("seed_*"))]
    return [record for folder in folders if (record := newest_record(folder))]


def index_file() -> Path:
    """Return the file that lists the run directories of this user's submissions."""
    return cache_dir() / "runs.txt"
