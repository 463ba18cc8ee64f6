"""Files and folders that are there whole or not at all, also after a power cut: written aside, synced, renamed.

What a crash leaves behind has one of two endings, and is removed by whoever goes on: `.saving` was not finished,
`.removing` was not needed any more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.errors import RunError, UsageError

SAVING, REMOVING = ".saving", ".removing"


class SavingError(RunError, OSError):
    """Something could not be written: the disk is full, broken or read-only. `reason` is what the system says."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


@contextmanager
def saving(what: str | Path) -> Iterator[None]:
    """Turns an OSError of the block into SavingError, which names `what` was being written."""
    try:
        yield
    except SavingError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise SavingError(f"could not write {what}: {reason}", reason) from error


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` with this text, on disk when this returns. Raises SavingError."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
    with saving(path):
        sync(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append to a log. A crash can cut the last line short, so readers skip one without its line break."""
    with saving(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; the file written there replaces `path` in one move. Nothing is forced to disk.

    Raises SavingError.
    """
    aside = path.with_name(path.name + SAVING)
    with saving(path):
        yield aside
        aside.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they are missing. Raises SavingError."""
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force everything in a folder to the disk, the folder last."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody takes what is left of it for whole."""
    aside = folder.with_name(folder.name + REMOVING)
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
    shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left anywhere in a folder."""
    for path in [path for path in folder.rglob("*") if path.suffix in (SAVING, REMOVING)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have lain in a folder that is gone by now


def check_folder(path: Path, option: str = "--output") -> None:
    """Raises ValueError where `path` is no folder and none can be made there."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"{option} {path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {there} is read-only for you; name another folder")


def check_file(path: Path, option: str = "--output") -> None:
    """Raises ValueError where no file `path` can be written."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name the file that is to be written, {path / 'report.html'}")
    check_folder(path.parent, option)
