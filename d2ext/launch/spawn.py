"""Start this machine's ranks, supervise them, and report why a run failed.

Works around faults of Detectron2's `launch()`: it returns normally after a KeyboardInterrupt,
blames a peer if the failing rank dies slowly, waits 30 s for ranks that exit gracefully, and leaves
ranks alive when it is killed.
"""

import contextlib
import datetime
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from d2ext._compat import run_exit_functions
from d2ext.errors import UserError
from d2ext.guard import LAUNCHER, die_with_parent
from d2ext.launch.collectives import check_own_gpus, set_timeout, wait_for_ranks
from d2ext.launch.device import share_cores
from d2ext.launch.failures import (
    FailureFolder,
    cause,
    describe_failure,
    describe_killed,
    peer_died,
    print_failure,
    write_failure,
)
from d2ext.launch.signals import ignore_signals, name_of, on_forced_exit
from d2ext.launch.supervisor import FORWARDED, met, send, signals_forwarded, terminate_peers
from d2ext.launch.topology import Topology, check_rendezvous, end_step
from d2ext.run_dir.schema import RankFailure, read_record
from d2ext.waiting import waiting_for

T = TypeVar("T")


def start_ranks(
    topology: Topology,
    target: Callable[..., int],
    args: tuple,
    timeout: float,
    device: str,
    output_dir: Path,
) -> int:
    """Run `target(*args)` in every rank that this process starts or is.

    Args:
        topology: Topology returned by `find_topology`.
        target: Importable function that returns the exit status.
        args: Arguments of `target`; they are pickled.
        timeout: Seconds to wait for other ranks, in the rendezvous and in each exchange.
        device: `cpu` or `cuda`.
        output_dir: Run directory; ranks write their errors to `errors/` in it, so that every
            machine can read the cause on a shared disk.

    Returns:
        The exit status of the ranks. If a rank failed, the cause has been printed and the status is
        1 (2 for a UserError, 130 after a second Ctrl-C). A rank that torchrun or srun started does
        not return; its process exits.

    Raises:
        UserError: The ranks cannot meet.
    """
    if not 0 < timeout < 1e7:
        raise UserError(f"--dist-timeout {timeout:g}: give a positive number of seconds below 1e7")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # launch() uses NCCL whenever it sees a GPU
    if topology.launcher != "self" or topology.world_size == 1:

        def rank() -> int:
            status = target(*args)
            if topology.launcher != "self":
                ignore_signals()  # preserve the status
            return status

        status = run_here(topology, rank, timeout, device, output_dir)
        if topology.launcher == "self":
            return status
        dist.destroy_process_group()
        exit_process(status)
    failures = FailureFolder(output_dir)
    check_rendezvous(topology, timeout)
    # torch logs which ranks it terminates; only the cause is printed, below.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="d2ext-ranks-"))
    os.environ[LAUNCHER] = str(os.getpid())
    # Without this filter, warnings of semaphores leaked by a dead rank would follow the cause.
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    failed = None
    try:
        with (
            signals_forwarded(folder) as sent,
            terminate_peers(folder) as vanished,
            _rendezvous(topology, timeout, lambda: len(met(folder)) < topology.per_machine),
        ):
            launch(
                _rank_main,
                topology.per_machine,
                topology.num_machines,
                topology.machine_rank,
                topology.url,
                args=(topology, device, folder, failures, timeout, target, args),
                timeout=datetime.timedelta(seconds=timeout),
            )
    except (
        torch.multiprocessing.ProcessRaisedException,
        torch.multiprocessing.ProcessExitedException,
    ) as e:
        failed = e
    finally:
        send(folder, signal.SIGKILL)
    try:
        return _outcome(topology, device, folder, failed, failures, sent, vanished)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_here(
    topology: Topology, target: Callable[[], T], timeout: float, device: str, output_dir: Path
) -> T:
    """Call `target` in this process, which is one of the ranks or the only one.

    Args:
        topology: Topology returned by `find_topology`; a process that torchrun or srun started
            joins the process group first, unless it has joined before.
        target: Function that does this rank's part.
        timeout: Argument of `start_ranks`.
        device: Argument of `start_ranks`.
        output_dir: Argument of `start_ranks`; a failure is recorded in it.

    Returns:
        The result of `target`. If it fails in one of several ranks, or these cannot connect, the
        process exits, because the other ranks wait for it.
    """
    failures = FailureFolder(output_dir)
    if topology.launcher == "self":
        try:
            return target()
        except BaseException as e:
            failures.record(describe_failure(0, e))
            raise
    if not dist.is_initialized():
        _join_or_exit(topology, timeout, device, failures)
    try:
        result = target()
        wait_for_ranks("the other ranks to end")  # a rank that exits early looks like a dead one
        return result
    except BaseException as e:
        failure = describe_failure(comm.get_rank(), e)
        failures.add(failure)
        status = _report(failures, failure, comm.is_main_process())
        sys.stdout.flush()
        os._exit(status)  # destructors of process groups can wait for peers


def _join_or_exit(topology: Topology, timeout: float, device: str, failures: FailureFolder) -> None:
    try:
        join_ranks(topology, timeout, device)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        status = 2
        if e.__cause__ and peer_died(e.__cause__):  # not a user error: a Slurm job is requeued
            failures.add(describe_failure(topology.rank, e.__cause__))
            status = 1
        if topology.launcher == "srun":
            end_step(os.environ)  # the other tasks would wait for this one
        sys.stdout.flush()
        os._exit(status)  # destructors of process groups can wait for peers


def join_ranks(topology: Topology, timeout: float, device: str) -> None:
    """Join the process group of a run whose ranks torchrun or srun started.

    Raises:
        UserError: Other ranks do not join in time, or the ranks cannot communicate.
    """
    if topology.launcher == "srun" and topology.rank == 0:
        check_rendezvous(topology, timeout)
    _share_cores(topology, device)
    if device == "cuda":
        # The only GPU that a rank sees is its own, as with srun --gpus-per-task=1.
        alone = torch.cuda.device_count() == 1
        torch.cuda.set_device(0 if alone else topology.rank % topology.per_machine)
    os.environ.setdefault("MASTER_ADDR", topology.url.removeprefix("tcp://").rpartition(":")[0])
    os.environ.setdefault("MASTER_PORT", topology.url.rpartition(":")[2])
    try:
        with _rendezvous(topology, timeout, lambda: topology.rank % topology.per_machine == 0):
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                init_method="env://" if topology.launcher == "torchrun" else topology.url,
                world_size=topology.world_size,
                rank=topology.rank,
                timeout=datetime.timedelta(seconds=timeout),
            )
        comm.create_local_process_group(topology.per_machine)
        set_timeout(timeout)
        if device == "cuda":
            check_own_gpus()
        wait_for_ranks("the other ranks to start")  # NCCL connects only now
    except (dist.DistError, RuntimeError) as e:
        text = f"{type(e).__name__}: {e}"
        raise UserError(_rendezvous_failed(topology, text)) from e


def _share_cores(topology: Topology, device: str) -> None:
    """Divide a machine's cores among its ranks."""
    ranks, cores = topology.per_machine, torch.get_num_threads()
    if topology.launcher == "srun":  # which may have bound this task to cores of its own
        cores = min(cores * ranks, int(os.environ.get("SLURM_CPUS_ON_NODE", cores)))
    share_cores(ranks, device, cores)


def _rank_main(
    topology: Topology,
    device: str,
    folder: Path,
    failures: FailureFolder,
    timeout: float,
    target: Callable[..., int],
    args: tuple,
) -> None:
    """Run the target in a spawned rank after the rendezvous."""
    die_with_parent()
    _share_cores(topology, device)
    os.environ[LAUNCHER] = str(os.getpid())  # for spawned loader workers
    rank = comm.get_rank()
    (folder / f"{rank}.pid").write_text(str(os.getpid()))

    def report(e: BaseException) -> None:
        failure = describe_failure(rank, e)
        write_failure(folder / f"{rank}.json", failure)
        failures.add(failure)

    on_forced_exit(lambda: report(KeyboardInterrupt()))
    try:
        set_timeout(timeout)
        status = target(*args)
        ignore_signals()
        wait_for_ranks("the other ranks to end")  # a rank that exits early looks like a dead one
    except BaseException as e:
        report(e)
        sys.stdout.flush()
        os._exit(1)  # destructors of process groups can wait for peers
    (folder / f"{rank}.status").write_text(str(status))
    dist.destroy_process_group()
    exit_process(0)


def exit_process(status: int) -> NoReturn:
    """Exit without finalizing Python, because Gloo's threads may still hold tensors.

    Such a thread releases the last tensors at an arbitrary time. If Python has no references to
    them left and is finalizing at that time, the process aborts. `destroy_process_group` ends these
    threads only if nothing refers to the group anymore, but DistributedDataParallel does.
    """
    run_exit_functions()
    with contextlib.suppress(BrokenPipeError):  # the reader is gone, as with `| head`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _outcome(
    topology: Topology,
    device: str,
    folder: Path,
    failed: Exception | None,
    failures: FailureFolder,
    sent: list[int],
    vanished: list[int],
) -> int:
    """Report why the run failed, if it did; return the exit status."""
    statuses = {int(p.stem): int(p.read_text()) for p in folder.glob("*.status")}
    if failed is None and len(statuses) == topology.per_machine:
        return max(statuses.values())
    if signal.SIGKILL in sent:
        print("interrupted", file=sys.stderr)
        return 130
    mine = [read_record(p, RankFailure) for p in folder.glob("*.json")]
    by = getattr(failed, "signal_name", None)
    forwarded = by and signal.Signals[by] in FORWARDED
    if not forwarded and (by or vanished):
        rank = topology.rank + failed.error_index if by else min(vanished)
        mine.append(describe_killed(rank, by, nccl=device == "cuda"))
        failures.add(mine[-1])
    if first := cause(mine):
        return _report(failures, first, topology.machine_rank == 0)
    if failed is None or forwarded:
        by = f" by {name_of(signal.Signals[by])}" if by else ""
        print(f"interrupted{by}", file=sys.stderr)
        return 130
    # `launch()` failed before the rendezvous.
    raise UserError(_rendezvous_failed(topology, str(failed)))


def _report(failures: FailureFolder, failure: RankFailure, first_machine: bool) -> int:
    """Print and record the cause of a failure; return the exit status."""
    first = failures.wait_for_cause(failure)
    if first_machine:
        failures.record(first)
    return print_failure(first)


def _rendezvous(
    topology: Topology, timeout: float, needed: Callable[[], bool]
) -> contextlib.AbstractContextManager:
    several = topology.launcher != "self" or topology.num_machines > 1
    remedy = f"--dist-timeout gives up ({timeout:g} s)" if several else "press Ctrl-C to give up"
    return waiting_for(
        f"all {topology.world_size} processes to start and meet at {topology.url}",
        remedy,
        needed=needed,
    )


def _rendezvous_failed(topology: Topology, text: str) -> str:
    if joined := re.search(r"(\d+)/(\d+) clients joined", text):
        return (
            f"only {joined[1]} of {joined[2]} processes reached {topology.url} in time; start the"
            " other machines, or wait longer with --dist-timeout"
        )
    if "wait timeout" in text:
        return (
            f"not all {topology.world_size} processes reached {topology.url} in time; check that"
            " --num-gpus and --num-machines are the same on every machine"
        )
    failed = f"the processes could not connect at {topology.url}: {_stated(text)}"
    if topology.num_machines == 1:
        return failed
    return (
        f"{failed}; if this machine has several network interfaces, select one with"
        " GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    )


def _stated(text: str) -> str:
    """Return the line that states the error in a traceback or the text of an exception."""
    if last := re.search(r"Last error:\n(.+)", text):  # NCCL's
        return last[1]
    # CUDA's errors end with lines of advice.
    if first := re.search(r"^[\w.]*(Error|Exception): .+", text, re.M):
        return first[0]
    return (text.strip() or "no reason given").splitlines()[-1]
