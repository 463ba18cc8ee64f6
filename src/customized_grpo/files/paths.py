"""Paths as users and lists write them. A path that is missing, forbidden or impossible is an answer, not an error."""

import os
import shlex
from pathlib import Path, PurePath

_LONGEST = 200  # characters of a path that are shown


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for a forbidden path and for a name too long


def is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a forbidden path and for a name too long


def inside(name: PurePath, root: Path) -> Path | None:
    """The file of a listed path under `root`, without "..", or None if it leads out of `root`.

    Paths are compared as written. A link inside `root` is followed wherever it points: the owner of the folder put it
    there, not the author of the list.
    """
    file = Path(os.path.normpath(root / name))
    folder, target = (Path(os.path.abspath(path)) for path in (root, file))  # noqa: PTH100 - resolve() follows links
    return file if target.is_relative_to(folder) else None


def display(path: object) -> str:
    """A path for a message: on one line, control characters escaped, the middle of a very long one left out."""
    text = str(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"


def as_argument(path: Path) -> str:
    """A path as it is typed in a command, in quotes if it needs them; a folder called `~` as ./~."""
    return shlex.quote(f"./{path}" if str(path).startswith("~") else str(path))


def why(error: Exception) -> str:
    """The reason of an error on one line; of an OSError without number and path, beginning with a small letter."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split()) or type(error).__name__
