"""`customized-grpo compare` in real processes that start at once: forks instead of interpreters that import torch.

The comparison is forked from the server of tests/forked.py, and each arm from the comparison: an arm's parent is the
comparison, as it is for users.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from forked import PRELOADED


def start_comparison(file: Path, log: Path, jobs: int, killed_by: str | None = None) -> tuple[BaseProcess, Connection]:
    """Start a comparison. The connection is at its end once the comparison and all of its arms have ended.

    killed_by  an arm that sends the comparison SIGKILL after its first update, and would then go on for a minute
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_compare, args=(str(file), str(log), jobs, killed_by, writer))
    process.start()
    writer.close()
    return process, reader


def run_comparison(file: Path, log: Path, jobs: int) -> int:
    """Run a comparison to its end; returns its exit code."""
    process, _ = start_comparison(file, log, jobs)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _compare(file: str, log: str, jobs: int, killed_by: str | None, writer: Connection) -> None:  # noqa: ARG001 (held open)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from customized_grpo import cli
    from customized_grpo.compare import runner, tables

    torch.set_num_threads(1)  # as in pytest's process
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
    tables.write_plots = lambda *_: None  # they take longer than these arms
    runner.launch = partial(ForkedArm, killed_by=killed_by)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = ["customized-grpo", "compare", file, "--jobs", str(jobs), "--device", "cpu"]
    cli.main()


class ForkedArm:
    """In place of the subprocess.Popen that `runner.launch` returns."""

    def __init__(
        self, arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str], killed_by: str | None
    ):
        deadly = killed_by in arguments
        self._process = get_context("fork").Process(
            target=_run_arm, args=(arguments, log.fileno(), environment, deadly)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        self._process.join()


def _run_arm(arguments: Sequence[str], log: int, environment: Mapping[str, str], deadly: bool) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)  # a fork has those of the comparison
    from customized_grpo.compare import arm

    if deadly:
        _kill_parent_after_first_update()
    arm.main(*arguments)


def _kill_parent_after_first_update() -> None:
    from customized_grpo.run.directory import RunDirectory

    log = RunDirectory.log

    def log_and_kill(self: RunDirectory, row: Mapping[str, Any]) -> None:
        log(self, row)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    RunDirectory.log = log_and_kill
