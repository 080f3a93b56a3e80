"""What a submission and its job leave on the shared disk; each file has one writer.

```
<run directory>/slurm/<time of submission>/
  submission.json    by submit.py: job, cluster, log
  attempts.json      by the job: when, where and how often it ran, and what came of it
  cancelled          by `submit.py cancel`
  meet-<job>-<n>     by the first machine of attempt n: host and port where the ranks meet
  failed-<job>-<n>   by another machine whose trainer failed
```
"""

import json
import time
from pathlib import Path
from typing import Any

from d2ext.files import cache_dir, write_json


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
    def submission(self) -> dict[str, Any]:
        """`job` (its id), `cluster` and `log`; {} while it is submitted.

        A local one's id is that of its process, of which `host` and `begun` are told as well.
        """
        return read_object(self.folder / "submission.json")

    def submitted(self, **facts: Any) -> None:
        """Notes the facts of `submission`, and the run for `status`."""
        write_json(self.folder / "submission.json", facts)
        index = index_file()
        index.parent.mkdir(parents=True, exist_ok=True)
        with open(index, "a") as f:
            f.write(f"{self.run_dir}\n")

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Each start's `number`, `started`, `nodes`, `checkpoint`; `ended` and `why` at its end."""
        return read_object(self.folder / "attempts.json").get("attempts", [])

    @property
    def outcome(self) -> dict[str, Any] | None:
        """`status` and `reason` of a job that has come to its end, or None."""
        return read_object(self.folder / "attempts.json").get("outcome")

    @property
    def requeues(self) -> int:
        """How often it was started again, by whomever."""
        return max(0, len(self.attempts) - 1)

    def begin(self, number: int, nodes: str, checkpoint: int | None) -> None:
        """Notes the start of an attempt, and which checkpoint was there (`verdict.newest`)."""
        start = {"number": number, "started": time.time()}
        attempts = [*self.attempts, start | {"nodes": nodes, "checkpoint": checkpoint}]
        write_json(self.folder / "attempts.json", {"attempts": attempts})

    def end(self, why: str, status: int | None = None) -> None:
        """Notes the end of the attempt; with a status it is the end of the job as well."""
        attempts = self.attempts
        if attempts:
            attempts[-1] |= {"ended": time.time(), "why": why}
        content: dict[str, Any] = {"attempts": attempts}
        if status is not None:
            content["outcome"] = {"status": status, "reason": why}
        write_json(self.folder / "attempts.json", content)

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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    text = read_text(path)
    return json.loads(text) if text else {}
