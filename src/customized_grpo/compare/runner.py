"""`customized-grpo compare`: run every arm with every seed, several at once, and rewrite the report after each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from tqdm import tqdm

from customized_grpo.compare.comparison import BASE, Comparison
from customized_grpo.compare.results import RESULT, collect
from customized_grpo.compare.tables import write_report
from customized_grpo.config import ConfigError
from customized_grpo.errors import RunError
from customized_grpo.files.durable import check_folder, make_folder, saving
from customized_grpo.files.paths import as_argument
from customized_grpo.policies import find_family
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.stopping import StopRequest
from customized_grpo.training.check import check_run
from customized_grpo.wording import counted

LOG = "log.txt"


class ComparisonError(RunError, RuntimeError):
    """Arms failed, and the message names them and a log; or no run is finished yet."""


@dataclass(frozen=True)
class Slot:
    """A place for one arm at a time: a GPU, or one thread of the CPU."""

    device: str
    environment: dict[str, str]


@dataclass
class Running:
    arm: str
    seed: int
    slot: Slot
    process: subprocess.Popen[bytes]
    log: IO[bytes]


def slots(jobs: int | None, device: str | None) -> list[Slot]:
    """One slot per GPU that `device` allows, or one per CPU core; `jobs` sets another number (slots may share a GPU).

    On the CPU every arm has one thread, regardless of `jobs`: the number of threads changes the last bits of a result,
    and arms that run side by side need no more.
    """
    gpus = _gpus(device)
    if gpus:
        return [Slot("cuda", {"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]}) for n in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [Slot(device or "cpu", {"OMP_NUM_THREADS": "1"})] * (jobs or cores)


def _gpus(device: str | None) -> list[str]:
    """The GPUs that arms may use, as CUDA_VISIBLE_DEVICES names them; "cuda:1" is the second of the visible ones."""
    if not (device or "cuda").startswith("cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(n) for n in range(count)] if visible is None else [n.strip() for n in visible.split(",")][:count]
    index = None if device is None else torch.device(device).index
    return names if index is None else names[index : index + 1]


def compare(file: Path, *, output: Path | None, jobs: int | None, device: str | None) -> str:
    """Run what is not finished yet and rewrite the report after each arm; returns the table and the report's folder.

    If arms fail, the others still run; ComparisonError is raised at the end. Raises InputError before anything runs.
    """
    comparison = Comparison.read(file, output)
    check_folder(comparison.output)
    collect(comparison)  # a damaged result is reported now, not after hours
    pending = deque(job for job in comparison.jobs if not (comparison.folder(*job) / RESULT).exists())
    _check(comparison, pending, device)
    if unequal := comparison.tested_otherwise():
        warnings.warn(f"arms are not tested alike: {'; '.join(unequal)}", stacklevel=2)
    make_folder(comparison.output)
    free, running, failed = deque(slots(jobs, device)), list[Running](), list[tuple[str, int]]()
    finished = len(comparison.jobs) - len(pending)
    bar = tqdm(total=len(comparison.jobs), initial=finished, desc="comparing", unit="run")
    with bar, _stopped(running), StopRequest("once arms that train have saved their update") as stop:
        while (pending or running) and not stop.requested:
            while pending and free:
                running.append(_start(comparison, file, *pending.popleft(), free.popleft()))
            time.sleep(0.2)
            for ended in [arm for arm in running if arm.process.poll() is not None]:
                running.remove(ended)
                ended.log.close()
                free.append(ended.slot)
                bar.update()
                if ended.process.returncode:
                    failed.append((ended.arm, ended.seed))
                    tqdm.write(f"{ended.arm}, seed {ended.seed}: {_last_line(comparison, ended)}", file=sys.stderr)
                else:
                    write_report(comparison, collect(comparison))
    results = collect(comparison)
    if stop.requested:
        done = sum(map(len, results.values()))
        kept = f"{done} of {len(comparison.jobs)} runs are finished, and the others keep what they saved"
        stop.exit(f"{kept}, in {comparison.output}; the same command goes on")
    table = write_report(comparison, results)
    if failed:
        names = ", ".join(f"{arm} (seed {seed})" for arm, seed in failed)
        log = comparison.folder(*failed[0]) / LOG
        raise ComparisonError(f"{table}\n\nfailed: {names}; see {log}. Fix this, then run the same command again")
    return _with_place(table, comparison)


def _check(comparison: Comparison, pending: Iterable[tuple[str, int]], device: str | None) -> None:
    """Check one seed of each pending arm as `train --dry-run` does, so that none fails in an hour.

    Raises ConfigError with every problem; one that all arms share is listed once.
    """
    seeds: dict[str, int] = {}
    for arm, seed in pending:
        seeds.setdefault(arm, seed)
    problems: dict[str, list[str]] = {}
    for arm, seed in seeds.items():
        config = comparison.config(arm, seed, device)
        usable_device(config.device)
        find_family(config.model)
        started = (Path(config.output) / "config.yaml").is_file()
        for problem in check_run(config, resume=started).problems:
            problems.setdefault(problem, []).append(arm)
    if problems:
        lines = (
            problem if len(arms) == len(seeds) else f"arms.{', '.join(arms)}: {problem}"
            for problem, arms in problems.items()
        )
        raise ConfigError("\n".join(lines))


def _start(comparison: Comparison, file: Path, arm: str, seed: int, slot: Slot) -> Running:
    folder = comparison.folder(arm, seed)
    make_folder(folder)
    with saving(folder / LOG):
        log = (folder / LOG).open("ab")
    arguments = [str(os.getpid()), str(file), str(comparison.output), arm, str(seed), slot.device]
    return Running(arm, seed, slot, launch(arguments, log, slot.environment), log)


def launch(arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python -m customized_grpo.compare.arm` with these arguments, its output in `log`."""
    return subprocess.Popen(
        [sys.executable, "-m", "customized_grpo.compare.arm", *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal reaches the comparison alone, which then stops its arms
        env={**os.environ, **environment, "TRANSFORMERS_VERBOSITY": "error"},
    )


@contextmanager
def _stopped(running: list[Running]) -> Iterator[None]:
    """Stop the running arms when the block ends, also by an error or Ctrl-C."""
    try:
        yield
    finally:
        for arm in running:
            arm.process.terminate()
        for arm in running:
            arm.process.wait()
            arm.log.close()


def _last_line(comparison: Comparison, ended: Running) -> str:
    """The last line of an arm's log, also after a progress bar; the exit code if there is none."""
    try:
        text = (comparison.folder(ended.arm, ended.seed) / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return (text.strip().splitlines() or [f"exit code {ended.process.returncode}"])[-1]


def report(file: Path, *, output: Path | None) -> str:
    """Rewrite the report of the finished runs and run nothing; returns the table and the report's folder.

    Raises ComparisonError if no run is finished.
    """
    comparison = Comparison.read(file, output)
    check_folder(comparison.output)
    results = collect(comparison)
    if not results:
        raise ComparisonError(
            f"no run is finished in {comparison.output / 'arms'}, so there is nothing to report; run the comparison "
            "without --report-only, or name the folder that holds its runs with --output"
        )
    return _with_place(write_report(comparison, results), comparison)


def _with_place(table: str, comparison: Comparison) -> str:
    page = f"customized-grpo report {as_argument(comparison.output)}"
    return f"{table}\n\nfiles: {comparison.output}; as a page: {page}"


def describe(comparison: Comparison) -> str:
    """The planned runs, for --dry-run."""
    runs, seeds = counted(len(comparison.jobs), "run"), ", ".join(map(str, comparison.seeds))
    lines = [f"{runs} into {comparison.output}, seeds {seeds}", ""]
    for arm in (BASE, *comparison.arms):
        config = comparison.config(arm, comparison.seeds_of(arm)[0])
        changes = ", ".join(f"{key}={value}" for key, value in comparison.lines(arm).items())
        images = 0 if arm == BASE else config.updates * config.groups.prompts * config.groups.size
        seeds = counted(len(comparison.seeds_of(arm)), "seed")
        lines.append(f"{arm:<20} {seeds}, {counted(images, 'image')} each   {changes}")
    return "\n".join(lines)
