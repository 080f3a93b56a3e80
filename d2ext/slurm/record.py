"""What a submission and its job leave on the shared disk; each file has one writer.

```
<run directory>/slurm/<time of submission>/
  submission.json    by submit.py: `Submission`
  attempts.json      by the job: `AttemptsRecord`
  cancelled          by `submit.py cancel`
  meet-<job>-<n>     by the first machine of attempt n: host and port where the ranks meet
  failed-<job>-<n>   by another machine whose trainer failed
```
"""

import json
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from d2ext.files import cache_dir
from d2ext.run_dir.schema import (
    UNSET,
    Attempt,
    AttemptsRecord,
    JobOutcome,
    Submission,
    write_record,
)

T = TypeVar("T")


class Record:
    """The record of one submission of one run.

    Args:
        folder: `<run directory>/slurm/<time of submission>`.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.folder.parent.parent

    @property
    def submission(self) -> Submission | None:
        """The submitted job; None until it is submitted."""
        return _read(self.folder / "submission.json", Submission)

    def submitted(self, submission: Submission) -> None:
        """Write the submitted job, and list the run for `status`."""
        write_record(self.folder / "submission.json", submission)
        index = index_file()
        index.parent.mkdir(parents=True, exist_ok=True)
        with open(index, "a") as f:
            f.write(f"{self.run_dir}\n")

    @property
    def attempts(self) -> list[Attempt]:
        """Every start of the job."""
        return self._read_attempts().attempts

    @property
    def outcome(self) -> JobOutcome | None:
        """Exit status and reason of a job that has ended, or None."""
        return self._read_attempts().outcome or None

    @property
    def requeues(self) -> int:
        """How often it was started again, by whomever."""
        return max(0, len(self.attempts) - 1)

    def begin(self, number: int, nodes: str, checkpoint: int | None) -> None:
        """Add an attempt, and the checkpoint at its start (`requeue_policy.newest`)."""
        start = Attempt(number=number, started=time.time(), nodes=nodes, checkpoint=checkpoint)
        self._write_attempts(AttemptsRecord([*self.attempts, start]))

    def end(self, why: str, status: int | None = None) -> None:
        """Add the end of the attempt; with a status it is the end of the job as well."""
        attempts = self.attempts
        if attempts:
            attempts[-1].ended, attempts[-1].why = time.time(), why
        outcome = UNSET if status is None else JobOutcome(status, why)
        self._write_attempts(AttemptsRecord(attempts, outcome))

    @property
    def cancelled(self) -> bool:
        """Whether the user has cancelled the job."""
        return (self.folder / "cancelled").exists()

    def cancel(self) -> None:
        """Notes that the user cancels the job, which is not to come back."""
        (self.folder / "cancelled").touch()

    def take_back(self) -> None:
        """The job is not cancelled after all."""
        (self.folder / "cancelled").unlink(missing_ok=True)

    def _read_attempts(self) -> AttemptsRecord:
        return _read(self.folder / "attempts.json", AttemptsRecord) or AttemptsRecord()

    def _write_attempts(self, record: AttemptsRecord) -> None:
        write_record(self.folder / "attempts.json", record)


def new_record(run_dir: Path, stamp: str) -> Record:
    """Makes the folder of a submission; `stamp` is its name."""
    folder = run_dir.absolute() / "slurm" / stamp
    folder.mkdir(parents=True)
    return Record(folder)


def newest_record(run_dir: Path) -> Record | None:
    """The record of the last submission of a run, or None."""
    folders = sorted(p.parent for p in (run_dir.absolute() / "slurm").glob("*/submission.json"))
    return Record(folders[-1]) if folders else None


def find_records(run_dir: Path | None) -> list[Record]:
    """The runs in a directory: its own, or those of its seeds; without one, all of this user's."""
    if run_dir is None:
        lines = read_text(index_file()).splitlines()
        folders = list(dict.fromkeys(map(Path, lines)))
    else:
        folders = [run_dir, *sorted(run_dir.glob("seed_*"))]
    return [record for folder in folders if (record := newest_record(folder))]


def index_file() -> Path:
    """Where the run directories of this user's submissions are listed."""
    return cache_dir() / "runs.txt"


def read_text(path: Path) -> str:
    """What is in a file; nothing where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _read(path: Path, kind: type[T]) -> T | None:
    """Read a record; None where there is no file."""
    text = read_text(path)
    return msgspec.convert(json.loads(text), kind) if text else None
