"""Who may write to a run's folder: one process at a time, and a resumed run only with compatible settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from customized_grpo.config import CONFIG, ConfigError, RunConfig, load_config
from customized_grpo.errors import InputError
from customized_grpo.files.adapter_places import checkpoints_of, has_trained, update_of
from customized_grpo.files.durable import SAVING, folder_problem, reason_of
from customized_grpo.run.changes import changes, refusal

LOCK = "run.lock"
ELSEWHERE = "choose another folder with output=..."


class RunDirectoryError(InputError, ValueError):
    """A run's folder that cannot be used as asked; the message says what to do instead."""


def check_access(config: RunConfig, *, resume: bool) -> list[str]:
    """Settings that changed since the run was last started, one line each. Writes nothing.

    Raises RunDirectoryError unless a run with this configuration can start, or resume, in this folder.
    """
    path = Path(config.output)
    with writable(path):
        if problem := folder_problem(path):
            raise RunDirectoryError(f"cannot write into {path}: {problem}; {ELSEWHERE}")
        files = {file.name for file in path.iterdir()} if path.exists() else set()
        if resume and CONFIG not in files:
            raise RunDirectoryError(f"nothing to resume: {path} holds no run; leave out --resume to start one")
        # A process that died before it wrote its configuration leaves these two files; they are not a run.
        if not resume and files - {LOCK, CONFIG + SAVING}:
            raise RunDirectoryError(f"{path} exists; continue that run with --resume, or {ELSEWHERE}")
        if LOCK in files:
            take_lock(path).release()
    return _changed_settings(path, config) if resume else []


def take_lock(path: Path) -> FileLock:
    """Lock the folder. The system releases the lock when the process ends, however it ends.

    Raises RunDirectoryError if another process holds the lock.
    """
    lock = FileLock(path / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunDirectoryError(f"{path} is in use: a run is writing there; stop that run, or {ELSEWHERE}") from None
    return lock


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises RunDirectoryError if the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"cannot write into {path}: {reason_of(error)}; {ELSEWHERE}") from error


def _changed_settings(path: Path, new: RunConfig) -> list[str]:
    """The allowed changes of a resumed run, one line each. Raises RunDirectoryError with a line per refused change."""
    try:
        old = load_config(str(path / CONFIG))
    except ConfigError as error:
        raise RunDirectoryError(f"{path / CONFIG} is not a configuration of this version:\n{error}") from error
    changed = changes(old, new)
    if not has_trained(path):  # nothing is trained yet: the run starts again from the first update
        return [f"resuming with {change}" for change in changed]
    refused = [refusal(change) for change in changed if not change.allowed]
    finished = max(map(update_of, checkpoints_of(path)), default=0)
    if new.updates < finished:
        refused.append(
            f"updates: {old.updates} -> {new.updates}, but {finished} are finished; resume with updates={finished}"
        )
    if refused:
        raise RunDirectoryError("\n".join([f"{path} was trained with other settings:", *refused]))
    return [f"resuming with {change}" for change in changed]
