"""Parse the command line of `d2ext submit` into a `Request`."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from d2ext.errors import UserError
from d2ext.slurm.plan import Request

# Short options that srun and sbatch share.
_SHORT = {
    "A": "account",
    "C": "constraint",
    "G": "gpus",
    "N": "nodes",
    "J": "job-name",
    "c": "cpus-per-task",
    "p": "partition",
    "q": "qos",
    "t": "time",
    "w": "nodelist",
    "x": "exclude",
}
# Options of sbatch that d2ext sets itself, and how the user decides them.
_OURS = {
    "array": "--seeds decides that",
    "chdir": "the job runs in the folder that it is submitted from; submit it elsewhere",
    "cpus-per-task": "--cpus-per-task decides that",
    "error": "--work-dir decides that",
    "gpus-per-node": "--num-gpus decides that",
    "job-name": "--job-name decides that",
    "no-requeue": "--max-requeues 0 does that",
    "nodes": "--num-machines decides that",
    "ntasks": "--num-machines and --num-gpus decide that",
    "ntasks-per-node": "--num-gpus decides that",
    "open-mode": "--work-dir decides that",
    "output": "--work-dir decides that",
    "parsable": "d2ext reads what sbatch says",
    "quiet": "d2ext reads what sbatch says",
    "requeue": "--max-requeues decides that",
    "signal": "--signal-delay decides that",
    "test-only": "--dry-run checks and submits nothing",
    "wait": "--wait does that",
    "wrap": "the job is the training",
}


def parse_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """Return options of sbatch by their long names; True for one without a value.

    Args:
        texts: Each is `KEY=VALUE` or `KEY`; or, starting with a dash, a line of srun's arguments,
            such as `--key value -w node1`, quoted as in a shell.

    Raises:
        UserError: An option cannot be read, or d2ext sets it itself.
    """
    options: dict[str, str | bool] = {}
    for text in texts:
        pairs = _line(text) if text.startswith("-") else [text.partition("=")]
        for key, equals, value in pairs:
            key = key.replace("_", "-")
            if not key or "\n" in text:
                raise UserError(f"--slurm {text!r}: give KEY=VALUE, on one line")
            if key in _OURS:
                raise UserError(f"--slurm {key}: {_OURS[key]}")
            options[key] = value if equals else True
    return options


def _line(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, equals sign and value of each of srun's arguments."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise UserError(f"--slurm {text}: {e}") from e
    while words:
        word = words.pop(0)
        key, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--"):
            if word[1:2] not in _SHORT:
                raise UserError(
                    f"--slurm {word}: give the long name, KEY=VALUE; what only srun knows, and"
                    " sbatch does not, cannot be given"
                )
            key, equals, value = _SHORT[word[1]], word[2:3], word[2:]
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        yield key, equals, value


def make_request(args: dict[str, Any], train: Sequence[str], env: Mapping[str, str]) -> Request:
    """Return the request of the flags of `d2ext submit`.

    Args:
        args: Its flags by name.
        train: Other arguments, for `d2ext train`.
        env: Environment of the process; `PORT` is where ranks meet, as in MMDetection's script.

    Raises:
        UserError: A flag cannot be read, or the job sets it itself.
    """
    for flag in ("--machine-rank", "--dist-url"):
        if any(word.partition("=")[0] == flag for word in train):
            raise UserError(f"{flag}: the job gives that to each of its machines")
    fields = {name: args[name] for name in Request.__dataclass_fields__ if name in args}
    fields["slurm"] = parse_options(args["slurm"])
    time = fields["slurm"].pop("time", None)  # MMDetection's script takes it in SRUN_ARGS
    if time and args["time"]:
        raise UserError(f"--slurm time={time}: --time {args['time']} is given as well")
    fields["time"] = args["time"] or time
    fields["seeds"] = _seeds(args["seeds"]) if args["seeds"] else []
    if fields["seeds"] and args["resume_from"]:
        raise UserError("--resume-from goes with one run, --seeds makes several")
    for name in ("num_machines", "num_gpus", "max_requeues"):
        if args[name] < (name != "max_requeues"):
            raise UserError(f"--{name.replace('_', '-')} {args[name]}: too few")
    return Request(train=list(train), port=_port(env.get("PORT")), **fields)


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"PORT={text}: give a number from 1 to 65535, or none")
    return int(text)


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds {text}: give different whole numbers, such as 1,2,3")
    return [int(word) for word in words]
