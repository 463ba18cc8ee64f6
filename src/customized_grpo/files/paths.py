"""Paths as users and lists write them. A path that is missing, forbidden or impossible is an answer, not an error."""

import os
import shlex
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePath
from unicodedata import normalize

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


def as_stored(path: Path) -> Path:
    """The path as it is spelled on disk, where it may be composed of other characters: a Mac writes é as e and an
    accent. Unchanged if nothing is there.

    Warns if two names differ in nothing else; the one that is spelled as `path` is taken.
    """
    if str(path).isascii():
        return path
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        found /= _as_stored(found, part)
    return found


def _as_stored(folder: Path, name: str) -> str:
    if normalize("NFC", name) == normalize("NFD", name):
        return name
    try:
        changed = folder.stat().st_mtime_ns
    except (OSError, ValueError):
        return name
    spellings = _spellings(folder.absolute(), changed).get(normalize("NFC", name), [name])
    warn_of_twins(folder, spellings)
    return name if name in spellings else spellings[0]


@lru_cache(maxsize=256)
def _spellings(folder: Path, changed: int) -> dict[str, list[str]]:  # noqa: ARG001 - a folder that changed is read again
    """The names in a folder by their composed form; {} if it cannot be read."""
    by_form: dict[str, list[str]] = {}
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names, not paths
    except OSError:
        return {}
    for name in sorted(names):
        by_form.setdefault(normalize("NFC", name), []).append(name)
    return by_form


def warn_of_twins(folder: Path, names: Iterable[str]) -> None:
    """Warn of names in a folder that look the same, because they differ only in how their letters are composed."""
    known: dict[str, str] = {}
    for name in names:
        twin = known.setdefault(normalize("NFC", name), name)
        if twin != name:
            warnings.warn(
                f"{display(folder)} holds {twin!a} and {name!a}, which look the same and differ only in how "
                "their letters are composed (Unicode NFC and NFD); rename or remove one",
                stacklevel=2,
            )


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
