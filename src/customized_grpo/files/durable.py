"""Files and folders that are complete or absent, even after a power cut: written under another name, synced, renamed.

A crash leaves names with one of two endings, which the next start removes: `.saving` (not finished) and `.removing`
(no longer needed).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.errors import RunError, UsageError

SAVING, REMOVING = ".saving", ".removing"
_UMASK = os.umask(0)  # read by setting it, while nothing else runs yet
os.umask(_UMASK)
_PRIVATE, _USUAL = 0o600, 0o666 & ~_UMASK


class SavingError(RunError, OSError):
    """A file could not be written: the disk is full, broken or read-only. `reason` is the system's own message."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def reason_of(error: Exception) -> str:
    """The system's message without the path, such as "No space left on device"."""
    if isinstance(error, SavingError):
        return error.reason
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def saving(what: str | Path) -> Iterator[None]:
    """Raises SavingError, which names `what`, if the block raises OSError."""
    try:
        yield
    except SavingError:
        raise
    except OSError as error:
        raise SavingError(f"could not write {what}: {reason_of(error)}", reason_of(error)) from error


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` with this text. It is on disk when this returns. Raises SavingError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
    with saving(path):
        sync(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append to a log. A crash can cut the last line short, so readers skip a line without a line break.

    Raises SavingError.
    """
    with saving(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path; the file written there replaces `path` in one step. Nothing is forced to disk.

    Raises SavingError.
    """
    temporary = path.with_name(path.name + SAVING)
    with saving(path):
        yield temporary
        temporary.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they are missing. Raises SavingError."""
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Force the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force everything in a folder to disk, the folder itself last; or one file.

    safetensors makes files that nobody else may read, and an adapter is for other programs and people too. Such files
    get the permissions of any other new file.
    """
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == _PRIVATE:
            path.chmod(_USUAL)
        sync(path)


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder; if this is interrupted, nothing mistakes the rest for a complete folder."""
    renamed = folder.with_name(folder.name + REMOVING)
    shutil.rmtree(renamed, ignore_errors=True)
    folder.replace(renamed)
    shutil.rmtree(renamed)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left anywhere in a folder."""
    for path in [path for path in folder.rglob("*") if path.suffix in (SAVING, REMOVING)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # its folder may have been removed a moment ago


# --- before anything is computed: can the results be written? --------------------------------------------------------


def check_folder(path: Path, option: str = "--output") -> None:
    """Raises UsageError if nothing can be written into the folder `path`, which need not exist yet."""
    if problem := folder_problem(path):
        raise UsageError(f"{option} {path}: {problem}; name another folder")


def check_file(path: Path, option: str = "--output") -> None:
    """Raises UsageError if the file `path` cannot be written."""
    try:
        is_folder = _exists(path) and path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path}: {reason_of(error)}; name another file") from None
    if is_folder:
        raise UsageError(f"{option} {path} is a folder; name the file to write, such as {path / 'report.html'}")
    check_folder(path.parent, option)


def folder_problem(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which need not exist yet; None if it can."""
    try:
        folder = folder.absolute()
        nearest = next(path for path in (folder, *folder.parents) if _exists(path))
        is_folder = nearest.is_dir()
    except (OSError, ValueError) as error:
        return reason_of(error)
    if not is_folder:
        return f"{nearest} is a file"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is not writable"


def _exists(path: Path) -> bool:
    """Raises OSError or ValueError for a path that the system refuses: a name too long, a NUL character."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
