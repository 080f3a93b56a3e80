"""Profile the peak memory of the demo, which `training.py --only peak_rss` measures.

    python benchmarks/memory_profile.py [--options KEY=VALUE ...]

The model of both sides is replaced by one that records the memory of its process after each stage
(memory_marks.py). The table goes to tables.json.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from common import ORIGINALS, keep
from memory_marks import FILE, STAGES
from training import DEMO, FIGURES, Run, commands


def main() -> None:
    """Store a row for each stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    options = [*DEMO, f"data.root={ORIGINALS}", *parser.parse_args().options]
    options.append("model._target_=memory_marks.marked")
    rows: dict[str, dict] = {stage: {"after": stage} for stage in STAGES}
    with tempfile.TemporaryDirectory() as folder:
        for side, (command, out) in commands(FIGURES["peak_rss"], options, Path(folder)).items():
            marks = Path(folder) / f"{side}.jsonl"
            os.environ[FILE] = str(marks)
            peak = Run(command, out).peak
            for line in marks.read_text().splitlines()[: len(STAGES)]:
                mark = json.loads(line)
                total = mark["own"] + mark["files"]
                rows[mark["stage"]] |= {
                    f"{side}": round(total),
                    f"own of {side}": round(mark["own"]),
                    f"files of {side}": round(mark["files"]),
                    f"loader of {side}": round(mark["children"]),
                }
            last = rows.setdefault("peak", {"after": "peak of all steps"})
            last |= {f"{side}": round(peak)}
            last |= {f"{what} of {side}": "" for what in ("own", "files", "loader")}
    for row in rows.values():
        print(row)
    keep("memory", list(rows.values()))


if __name__ == "__main__":
    main()
