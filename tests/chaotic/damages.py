"""Damage a run directory and compare the outcome of a resume with the docs; soak a long run."""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.chaotic.processes import Run, done
from tests.chaotic.stories import difference, until_ended

NEWEST, BEFORE = "model_0000011.pth", "model_0000008.pth"
_EVALUATIONS = 300
_MEMORY_TOLERANCE = 0.06  # growth of resident memory that the allocator may cause


def _case(outcome: str, recovers: bool = True, largest_file: int | None = None) -> Callable:
    """Decorate a function that damages a run directory with the expected end of the next resume.

    Args:
        outcome: "continues at iteration N", or words of the last line if the status is 2.
        recovers: Whether another resume without the cause must end like an uninterrupted run.
        largest_file: Size in bytes of the largest file that the resume can write.
    """

    def decorate(damage: Callable[[Path], object]) -> Callable:
        def story(folder: Path, data: Path, whole: Path, row: dict) -> Iterator[float | None]:
            _killed_after_12(whole, folder)
            row["documented"] = outcome
            with contextlib.ExitStack() as stack:
                extra = damage(folder, stack) or []
                if extra == "skip":
                    row.update(got="skipped, not root", ok="skipped")
                    return
                args = ["--resume", f"data.root={data}", *extra]
                run = Run(folder, args, largest_file=largest_file)
                yield from until_ended(run)
                row["output"] = text = run.text()
                last = (text.strip().splitlines() or ["nothing"])[-1]
                expected = outcome.partition(";")[0]
                good = expected in text if run.status == 0 else expected in last
                good &= "Traceback" not in text and run.status == (
                    0 if "continues" in outcome else 2
                )
                row["got"] = f"status {run.status}: " + (expected if good else last)[-110:]
                if run.status != 0 and recovers:  # without the cause, nothing is lost
                    stack.close()
                    again = Run(folder, ["--resume", f"data.root={data}"])
                    yield from until_ended(again)
                    row["output"] += again.text()
                    good &= again.status == 0
                renamed = (folder / f"{NEWEST}.damaged").is_file()
                good &= renamed == ("set aside" in outcome)
                row["then"] = difference(folder, whole) or "bit for bit"
                row["ok"] = good and row["then"] == "bit for bit"

        return story

    return decorate


def _killed_after_12(whole: Path, folder: Path) -> None:
    shutil.copytree(whole, folder)
    for path in [*folder.glob("model_final*"), *folder.glob("model_000001[45]*")]:
        path.unlink()
    (folder / "last_checkpoint").write_text(NEWEST)
    rows = (folder / "metrics.json").read_text().splitlines(keepends=True)
    (folder / "metrics.json").write_text("".join(rows[:12]))
    (folder / "results.json").unlink()  # those of the end; the checkpoints have earlier ones


@_case("continues at iteration 9; set aside")
def truncated(folder: Path, stack: contextlib.ExitStack) -> None:
    os.truncate(folder / NEWEST, (folder / NEWEST).stat().st_size // 2)


@_case("continues at iteration 9; set aside")
def bit_flipped(folder: Path, stack: contextlib.ExitStack) -> None:
    content = bytearray((folder / NEWEST).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / NEWEST).write_bytes(content)


@_case("continues at iteration 9; set aside")
def empty(folder: Path, stack: contextlib.ExitStack) -> None:
    os.truncate(folder / NEWEST, 0)
    (folder / f"{NEWEST}.sha256").unlink()


@_case("continues at iteration 12")
def missing_pointer(folder: Path, stack: contextlib.ExitStack) -> None:
    (folder / "last_checkpoint").unlink()


@_case("continues at iteration 12")
def pointer_to_a_missing_file(folder: Path, stack: contextlib.ExitStack) -> None:
    (folder / "last_checkpoint").write_text("model_0000014.pth")


@_case("is not writable")
def read_only(folder: Path, stack: contextlib.ExitStack) -> object:
    if os.getuid():
        folder.chmod(0o500)
        stack.callback(folder.chmod, 0o700)
        return None
    # Root can write to any folder unless its file system is read-only.
    if _mount("--bind", folder, folder):
        return "skip"
    stack.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return None


@_case("but the disk has only")
def full_disk(folder: Path, stack: contextlib.ExitStack) -> object:
    real = folder.with_name(folder.name + "-real")
    folder.rename(real)
    folder.mkdir()
    room = sum(p.stat().st_size for p in real.rglob("*") if p.is_file()) + 12_000_000
    if os.getuid() or _mount("-t", "tmpfs", "-o", f"size={room}", "tmpfs", folder):
        folder.rmdir()
        real.rename(folder)
        return "skip"

    def remount() -> None:
        kept = folder.with_name(folder.name + "-kept")
        shutil.copytree(folder, kept)
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()
        kept.rename(folder)

    stack.callback(remount)
    shutil.copytree(real, folder, dirs_exist_ok=True)
    # All checkpoints are kept, so that the third new one does not fit.
    return ["train.checkpointer.max_to_keep=0", "train.checkpointer.period=1"]


@_case("File too large", largest_file=1_500_000)
def full_disk_half_way(folder: Path, stack: contextlib.ExitStack) -> None:
    """Writing fails although the check before the save finds enough space."""


@_case("does not fit this config (")
def wrong_model(folder: Path, stack: contextlib.ExitStack) -> list[str]:
    return [
        "model.roi_heads.box_head.fc_dims=[24]",
        "model.roi_heads.box_predictor.input_shape.channels=24",
    ]


@_case("is not a training checkpoint of d2ext")
def wrong_torch_file(folder: Path, stack: contextlib.ExitStack) -> None:
    shutil.copy(folder / NEWEST, kept := folder / "kept")
    (folder / f"{NEWEST}.sha256").rename(folder / "kept.sha256")
    torch.save({"weights": torch.zeros(3)}, folder / NEWEST)

    def restore() -> None:
        kept.rename(folder / NEWEST)
        (folder / "kept.sha256").rename(folder / f"{NEWEST}.sha256")

    stack.callback(restore)


@_case("continues at iteration 12")
def leftover_temporary(folder: Path, stack: contextlib.ExitStack) -> None:
    leftover = folder / ".model_0000014.pth.4711.tmp"
    leftover.write_bytes(b"PK half")

    def check_removed() -> None:
        if leftover.exists():
            raise AssertionError(f"{leftover} is still there")

    stack.callback(check_removed)


@_case("another process is writing to the output directory")
def two_writers(folder: Path, stack: contextlib.ExitStack) -> None:
    """Stop a process that trains the same run while it holds the lock."""
    other = Run(folder, ["--resume", f"data.root={folder.parent / 'data'}"])
    while not other.steps():
        time.sleep(0.01)
    os.killpg(other.pid, signal.SIGSTOP)

    def end() -> None:
        os.killpg(other.pid, signal.SIGCONT)
        while not other.ended():
            time.sleep(0.01)
        if other.status != 0:
            raise AssertionError(other.text())

    stack.callback(end)


@_case("continues at iteration 12")
def clock_jump(folder: Path, stack: contextlib.ExitStack) -> None:
    """Date the newest checkpoint to 1990 and an older one to 2038, and delete the pointer."""
    os.utime(folder / NEWEST, (631152000, 631152000))
    os.utime(folder / BEFORE, (2**31, 2**31))
    (folder / "last_checkpoint").unlink()


DAMAGES = {
    story.replace("_", " "): globals()[story]
    for story in (
        "truncated bit_flipped empty missing_pointer pointer_to_a_missing_file read_only full_disk"
        " full_disk_half_way wrong_model wrong_torch_file leftover_temporary two_writers clock_jump"
    ).split()
}


def soak(folder: Path, data: Path, row: dict) -> Iterator[float | None]:
    """Monitor memory, open files and threads of a run of 300 evaluations and checkpoints."""
    options = f"train.max_iter={_EVALUATIONS} train.eval_period=1 train.checkpointer.period=1"
    options += " train.checkpointer.asynchronous=true dataloader.val.num_workers=1"
    run = Run(folder, [f"data.root={data}", *options.split()])
    seen: dict[int, tuple[int, int, int]] = {}
    while not run.ended():
        with contextlib.suppress(OSError, ValueError, IndexError):
            process = Path(f"/proc/{run.pid}")
            pages = int((process / "statm").read_text().split()[1])
            files, threads = (len(list((process / d).iterdir())) for d in ("fd", "task"))
            if (at := done(folder)) not in seen:
                seen[at] = pages * os.sysconf("SC_PAGE_SIZE") // 2**20, files, threads
        yield
    early = [seen[i] for i in sorted(seen) if _EVALUATIONS // 4 <= i < _EVALUATIONS // 2]
    late = [seen[i] for i in sorted(seen) if i >= _EVALUATIONS * 3 // 4]
    row.update(evaluations=done(folder), status=run.status, ok=False)
    if run.status != 0 or not early or not late:
        row["output"] = run.text()[-3000:]
        return
    for name, a, b in zip(
        ("MiB", "files", "threads"), _columns(early), _columns(late), strict=True
    ):
        row[name] = [statistics.median(a), statistics.median(b)]
    row["ok"] = row["MiB"][1] <= row["MiB"][0] * (1 + _MEMORY_TOLERANCE) and all(
        row[name][1] <= row[name][0] + 1 for name in ("files", "threads")
    )


def _columns(rows: list[tuple]) -> list[tuple]:
    return list(zip(*rows, strict=True))


def _mount(*args: object) -> int:
    return subprocess.run(["mount", *map(str, args)], capture_output=True).returncode
