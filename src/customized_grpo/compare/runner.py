"""`customized-grpo compare`: run every arm with every seed, several at once; after each, write what is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from tqdm import tqdm

from customized_grpo.compare.arm import RESULT
from customized_grpo.compare.comparison import BASE, Comparison, Results
from customized_grpo.compare.tables import write_report
from customized_grpo.errors import RunError
from customized_grpo.files.durable import check_folder, make_folder, saving
from customized_grpo.training.assemble import check_inputs

LOG = "log.txt"


class ComparisonError(RunError, RuntimeError):
    """Arms failed, and the message says which and where their logs are; or there is nothing to report on yet."""


@dataclass(frozen=True)
class Slot:
    """Where one arm runs at a time: a GPU, or a share of the CPU's threads."""

    device: str | None
    environment: dict[str, str]


@dataclass
class Running:
    arm: str
    seed: int
    slot: Slot
    process: subprocess.Popen[bytes]
    log: IO[bytes]


def slots(jobs: int | None, device: str | None) -> list[Slot]:
    """One slot per GPU that `device` leaves open, or one per CPU core; `jobs` says how many instead (several may share
    a GPU).

    On the CPU every arm has one thread, whatever `jobs` is: the number of threads changes the last bits of a result,
    and runs side by side need no more.
    """
    gpus = _gpus(device)
    if gpus:
        return [Slot("cuda", {"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]}) for n in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [Slot(device or "cpu", {"OMP_NUM_THREADS": "1"})] * (jobs or cores)


def _gpus(device: str | None) -> list[str]:
    """Those that arms may use, as CUDA_VISIBLE_DEVICES names them: of "cuda:1" the second of those that we may use."""
    if not (device or "cuda").startswith("cuda"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(n) for n in range(count)] if visible is None else [n.strip() for n in visible.split(",")][:count]
    index = None if device is None else torch.device(device).index
    return names if index is None else names[index : index + 1]


def compare(file: Path, *, output: Path | None, jobs: int | None, device: str | None) -> str:
    """Run what is not finished yet and write the report after each arm; returns the table, and where the report is.

    Raises ComparisonError, after everything else has run, where an arm failed.
    """
    comparison = Comparison.read(file, output)
    check_folder(comparison.output)
    # What every arm needs is looked for here, or each of them would fail by itself, one after the other.
    check_inputs(comparison.config(BASE, comparison.seeds[0], device))
    make_folder(comparison.output)
    pending = deque(job for job in comparison.jobs if not (comparison.folder(*job) / RESULT).exists())
    free, running, failed = deque(slots(jobs, device)), list[Running](), list[tuple[str, int]]()
    finished = len(comparison.jobs) - len(pending)
    with tqdm(total=len(comparison.jobs), initial=finished, desc="comparing", unit="run") as bar, _stopped(running):
        while pending or running:
            while pending and free:
                running.append(_start(comparison, file, *pending.popleft(), free.popleft()))
            time.sleep(0.2)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                each.log.close()
                free.append(each.slot)
                bar.update()
                if each.process.returncode:
                    failed.append((each.arm, each.seed))
                    tqdm.write(f"{each.arm}, seed {each.seed}: {_last_line(comparison, each)}", file=sys.stderr)
                else:
                    write_report(comparison, collect(comparison))
    table = write_report(comparison, collect(comparison))
    if failed:
        names = ", ".join(f"{arm} (seed {seed})" for arm, seed in failed)
        logs = comparison.folder(*failed[0]) / LOG
        raise ComparisonError(f"{table}\n\nfailed: {names}; see {logs}. Run the same command again for the rest")
    return _with_place(table, comparison)


def _start(comparison: Comparison, file: Path, arm: str, seed: int, slot: Slot) -> Running:
    folder = comparison.folder(arm, seed)
    make_folder(folder)
    with saving(folder / LOG):
        log = (folder / LOG).open("ab")
    arguments = [str(os.getpid()), str(file), str(comparison.output), arm, str(seed)]
    command = [sys.executable, "-m", "customized_grpo.compare.arm", *arguments]
    environment = {**os.environ, **slot.environment, "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        [*command, *([slot.device] if slot.device else [])], stdout=log, stderr=subprocess.STDOUT, env=environment
    )
    return Running(arm, seed, slot, process, log)


@contextmanager
def _stopped(running: list[Running]) -> Iterator[None]:
    """Whatever ends the comparison ends its arms."""
    try:
        yield
    finally:
        for each in running:
            each.process.terminate()
        for each in running:
            each.process.wait()
            each.log.close()


def _last_line(comparison: Comparison, each: Running) -> str:
    text = (comparison.folder(each.arm, each.seed) / LOG).read_text(encoding="utf-8", errors="replace")
    return (text.strip().splitlines() or [f"exit code {each.process.returncode}"])[-1]


def report(file: Path, *, output: Path | None) -> str:
    """Write the report of what is finished and run nothing; returns the table, and where the report is.

    Raises ComparisonError where nothing is finished.
    """
    comparison = Comparison.read(file, output)
    check_folder(comparison.output)
    results = collect(comparison)
    if not results:
        raise ComparisonError(
            f"no run is finished in {comparison.output / 'arms'}: there is nothing to report on; run the comparison "
            "without --report-only, or name the folder that holds its runs with --output"
        )
    return _with_place(write_report(comparison, results), comparison)


def _with_place(table: str, comparison: Comparison) -> str:
    return f"{table}\n\nfiles: {comparison.output}; as a page: customized-grpo report {comparison.output}"


def collect(comparison: Comparison) -> Results:
    """The results of all finished arms, by arm and seed."""
    found: Results = {}
    for arm, seed in comparison.jobs:
        file = comparison.folder(arm, seed) / RESULT
        if file.exists():
            found.setdefault(arm, {})[seed] = json.loads(file.read_text(encoding="utf-8"))
    return {arm: found[arm] for arm in (BASE, *comparison.arms) if arm in found}


def describe(comparison: Comparison) -> str:
    """What would run, for --dry-run."""
    lines = [
        f"{len(comparison.jobs)} runs into {comparison.output}, seeds {', '.join(map(str, comparison.seeds))}",
        "",
    ]
    for arm in (BASE, *comparison.arms):
        config = comparison.config(arm, comparison.seeds_of(arm)[0])
        changes = ", ".join(f"{key}={value}" for key, value in comparison.lines(arm).items())
        images = 0 if arm == BASE else config.updates * config.groups.prompts * config.groups.size
        lines.append(f"{arm:<20} {len(comparison.seeds_of(arm))} seeds, {images} images each   {changes}")
    return "\n".join(lines)
