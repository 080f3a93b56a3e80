"""The command line of tools/submit.py, as a `Request`."""

import shlex
from collections.abc import Sequence
from typing import Any

from d2ext.errors import UserError
from d2ext.slurm.plan import Request

# The short ones that srun and sbatch share.
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
# What the job rests on, and what has a flag of its own.
_OURS = {
    "array": "--seeds",
    "cpus-per-task": "--cpus-per-task",
    "error": "--work-dir",
    "gpus-per-node": "--num-gpus",
    "job-name": "--job-name",
    "nodes": "--num-machines",
    "ntasks-per-node": "--num-gpus",
    "open-mode": "--work-dir",
    "output": "--work-dir",
    "signal": "--signal-delay",
    "time": "--time",
}


def parse_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """`KEY=VALUE`, `KEY`, or a line of srun's arguments (`--key value -w node1`), as sbatch keys.

    Raises:
        UserError: one cannot be read, or has a flag of its own.
    """
    options: dict[str, str | bool] = {}
    for text in texts:
        words = shlex.split(text)
        while words:
            word = words.pop(0)
            key, equals, value = word.lstrip("-").partition("=")
            if word.startswith("-") and not word.startswith("--"):
                if word[1:2] not in _SHORT:
                    raise UserError(f"--slurm {word}: give the long name, KEY=VALUE")
                key, equals, value = _SHORT[word[1]], word[2:3], word[2:]
            if word.startswith("-") and not equals and words and not words[0].startswith("-"):
                equals, value = "=", words.pop(0)
            key = key.replace("_", "-")
            if not key:
                raise UserError(f"--slurm {text}: give KEY=VALUE")
            if key in _OURS:
                raise UserError(f"--slurm {key}: {_OURS[key]} decides that")
            options[key] = value if equals else True
    return options


def make_request(args: dict[str, Any], train: Sequence[str]) -> Request:
    """What the flags of tools/submit.py ask for.

    Args:
        args: its flags by name.
        train: what it does not know itself, for train_net.py.

    Raises:
        UserError: a flag cannot be read, or is the job's to give.
    """
    for flag in ("--machine-rank", "--dist-url"):
        if any(word.partition("=")[0] == flag for word in train):
            raise UserError(f"{flag}: the job gives that to each of its machines")
    fields = {name: args[name] for name in Request.__dataclass_fields__ if name in args}
    fields["slurm"] = parse_options(args["slurm"])
    fields["seeds"] = _seeds(args["seeds"]) if args["seeds"] else []
    if fields["seeds"] and args["resume_from"]:
        raise UserError("--resume-from goes with one run, --seeds makes several")
    for name in ("num_machines", "num_gpus", "max_requeues"):
        if args[name] < (name != "max_requeues"):
            raise UserError(f"--{name.replace('_', '-')} {args[name]}: too few")
    return Request(train=list(train), **fields)


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds {text}: give different whole numbers, such as 1,2,3")
    return [int(word) for word in words]
