"""Where results go, checked before hours are spent on them; nothing is made here."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(path: Path, option: str = "--output") -> None:
    """Raises ValueError where `path` is no folder and none can be made there."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{option} {path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: {there} is read-only for you; name another folder")


def check_file(path: Path, option: str = "--output") -> None:
    """Raises ValueError where no file `path` can be written."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name the file that is to be written, {path / 'report.html'}")
    check_folder(path.parent, option)
