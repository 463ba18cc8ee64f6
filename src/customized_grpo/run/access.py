"""Who may write into a run's folder: nobody but one process, and only with the settings that the run has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from customized_grpo.config import CONFIG, ConfigError, RunConfig, load_config
from customized_grpo.errors import InputError
from customized_grpo.files.durable import SAVING
from customized_grpo.run.changes import changes, refusal
from customized_grpo.run.checkpoints import FOLDER, checkpoints_of, update_of

LOCK = "run.lock"
ELSEWHERE = "choose another folder with output=..."


class RunDirectoryError(InputError, ValueError):
    """A run directory that cannot be used as asked; the message names the ways out."""


def check_access(config: RunConfig, *, resume: bool) -> list[str]:
    """Settings that changed since the run was last started, one line each; nothing is written.

    Raises RunDirectoryError unless a run with this configuration can start, or resume, in this folder.
    """
    path = Path(config.output)
    if resume and not (path / CONFIG).is_file():
        raise RunDirectoryError(f"nothing to resume: {path} holds no run; leave out --resume to start one")
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; {ELSEWHERE}")
    with writable(path):
        # What is left where a process died before it had written its configuration is no run.
        files = {file.name for file in path.iterdir()} if path.exists() else set()
        if not resume and files - {LOCK, CONFIG + SAVING}:
            raise RunDirectoryError(f"{path} exists; continue that run with --resume, or {ELSEWHERE}")
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise RunDirectoryError(f"{path} cannot be made: {there} is a file; {ELSEWHERE}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise RunDirectoryError(f"cannot write into {path}: {there} is read-only for you; {ELSEWHERE}")
        if LOCK in files:
            take_lock(path).release()
    return _changed_settings(path, config) if resume else []


def take_lock(path: Path) -> FileLock:
    """The folder's lock, taken. It goes with the process that holds it, however that ends.

    Raises RunDirectoryError where another one has it.
    """
    lock = FileLock(path / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunDirectoryError(f"{path} is in use: a run is writing there; stop that one, or {ELSEWHERE}") from None
    return lock


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Says RunDirectoryError where the system says OSError."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"cannot write into {path}: {error.strerror or error}; {ELSEWHERE}") from error


def _changed_settings(path: Path, new: RunConfig) -> list[str]:
    """The allowed changes of a resumed run, one line each. Raises RunDirectoryError, which lists the refused ones."""
    try:
        old = load_config(str(path / CONFIG))
    except ConfigError as error:
        raise RunDirectoryError(f"{path / CONFIG} is no configuration of this version:\n{error}") from error
    found = changes(old, new)
    if not any((path / FOLDER).glob("*")):  # nothing is trained yet, and it begins again from the first update
        return [f"resuming with {change}" for change in found]
    refused = [refusal(change) for change in found if not change.allowed]
    done = max(map(update_of, checkpoints_of(path)), default=0)
    if new.updates < done:
        refused.append(f"updates: {old.updates} -> {new.updates}, but {done} are done; go on with updates={done}")
    if refused:
        raise RunDirectoryError("\n".join([f"{path} was trained with other settings so far:", *refused]))
    return [f"resuming with {change}" for change in found]
