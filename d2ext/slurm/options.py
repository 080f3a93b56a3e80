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
# Options of sbatch that d2ext sets itself, and what to use instead.
_OURS = {
    "array": "use --seeds",
    "chdir": "the job runs in the folder from which it is submitted; submit it from another one",
    "cpus-per-task": "use --cpus-per-task",
    "error": "use --work-dir",
    "gpus-per-node": "use --num-gpus",
    "job-name": "use --job-name",
    "no-requeue": "use --max-requeues 0",
    "nodes": "use --num-machines",
    "ntasks": "use --num-machines and --num-gpus",
    "ntasks-per-node": "use --num-gpus",
    "open-mode": "use --work-dir",
    "output": "use --work-dir",
    "parsable": "d2ext needs sbatch's usual output; remove this option",
    "quiet": "d2ext needs sbatch's usual output; remove this option",
    "requeue": "use --max-requeues",
    "signal": "use --signal-delay",
    "test-only": "use --dry-run, which submits nothing",
    "wait": "use --wait",
    "wrap": "d2ext sets the job's command; remove this option",
}


def parse_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """Return options of sbatch by their long names; True for an option without a value.

    Args:
        texts: Values of `--slurm`: `KEY=VALUE`, `KEY`, or, if it starts with a dash, a line of
            srun's arguments such as `--key value -w node1`, quoted as in a shell.

    Raises:
        UserError: An option cannot be parsed, or d2ext sets it itself.
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
                    f"--slurm {word}: give the option's long name, KEY=VALUE; options of srun that"
                    " sbatch does not have are not supported"
                )
            key, equals, value = _SHORT[word[1]], word[2:3], word[2:]
        if not equals and words and not words[0].startswith("-"):
            equals, value = "=", words.pop(0)
        yield key, equals, value


def make_request(args: dict[str, Any], train: Sequence[str], env: Mapping[str, str]) -> Request:
    """Return the request that the arguments of `d2ext submit` describe.

    Args:
        args: Values of the flags of `d2ext submit`, by name.
        train: Other arguments, for `d2ext train`.
        env: Environment of the process; `PORT` sets the port of the rendezvous, as in MMDetection's
            script.

    Raises:
        UserError: A flag cannot be parsed, or the job sets it itself.
    """
    for flag in ("--machine-rank", "--dist-url"):
        if any(word.partition("=")[0] == flag for word in train):
            raise UserError(f"{flag} is set by the job for each machine; remove it")
    fields = {name: args[name] for name in Request.__dataclass_fields__ if name in args}
    fields["slurm"] = parse_options(args["slurm"])
    time = fields["slurm"].pop("time", None)  # MMDetection's script takes it in SRUN_ARGS
    if time and args["time"]:
        raise UserError(f"--slurm time={time} contradicts --time {args['time']}; give one of them")
    fields["time"] = args["time"] or time
    fields["seeds"] = _seeds(args["seeds"]) if args["seeds"] else []
    if fields["seeds"] and args["resume_from"]:
        raise UserError(
            "--resume-from resumes one run, but --seeds starts several; give one of them"
        )
    for name in ("num_machines", "num_gpus", "max_requeues"):
        least = 0 if name == "max_requeues" else 1
        if args[name] < least:
            raise UserError(f"--{name.replace('_', '-')} {args[name]}: give at least {least}")
    return Request(train=list(train), port=_port(env.get("PORT")), **fields)


def _port(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"PORT={text} is not a port; set a number from 1 to 65535, or unset PORT")
    return int(text)


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise UserError(f"--seeds {text}: give distinct non-negative integers, such as 1,2,3")
    return [int(word) for word in words]
