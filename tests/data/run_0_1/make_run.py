"""Write this folder's `photos`, and its `run` with version 0.1 (commit 926f172).

git worktree add /tmp/d2ext-0.1 926f172
PYTHONPATH=. python tests/data/run_0_1/make_run.py /tmp/d2ext-0.1
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.equal_to import make_data

HERE = Path(__file__).resolve().parent
# The report is not read again; the events' file is named after the machine.
UNUSED = ("report.html", "events.*", "model_best.pth", "model_final.pth")


def main() -> None:
    """Train in the checkout of 0.1 and keep what a later version reads."""
    make_data(HERE / "photos")
    checkout = Path(sys.argv[1]).resolve()
    folder = checkout / "tests" / "data" / "run_0_1"  # as deep as here, for the recipe's imports
    shutil.copytree(HERE / "photos", folder / "photos", dirs_exist_ok=True)
    shutil.copy(HERE / "recipe.py", folder)
    command = [sys.executable, "../../../tools/train_net.py", "--config-file", "recipe.py"]
    own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "D2EXT_CACHE": f"{folder}/cache"}
    environment = {**os.environ, **own, "PYTHONPATH": str(checkout)}
    subprocess.run(
        [*command, "--work-dir", "run", "--overwrite"], cwd=folder, env=environment, check=True
    )
    shutil.rmtree(HERE / "run", ignore_errors=True)
    shutil.copytree(folder / "run", HERE / "run", ignore=shutil.ignore_patterns(*UNUSED))


if __name__ == "__main__":
    main()
