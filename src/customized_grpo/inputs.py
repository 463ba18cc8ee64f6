"""What settings and options have in common: limits of numbers, and `~` in a path."""

from __future__ import annotations

import os

from customized_grpo.errors import InputError

LARGEST = 1_000_000  # limit of counts: more is a slip, and some would fill the memory before any error
LARGEST_NUMBER = 1e12  # of factors and bounds; in float32, products of much larger ones overflow to infinity and NaN
LARGEST_SEED = 2**63 - 1  # limit of torch and numpy


class PathError(InputError, OSError):
    """A path that names nothing: it is blank, or begins with `~` and a user who does not exist."""


def expand_user(path: str) -> str:
    """The path with `~` or `~name` at its beginning replaced by that user's folder; "./~" is a folder of that name.

    Raises PathError.
    """
    if not path.strip():
        raise PathError(f"the path {path!r} is blank; write one, or leave it out")
    if not path.startswith("~"):
        return path
    user = path.partition("/")[0][1:]
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path("./~") is Path("~")
    if expanded.startswith("~") or (not user and os.environ.get("HOME") == ""):
        reason = f"there is no user {user!r}" if user else "HOME does not name your folder"
        raise PathError(f"{path}: {reason}; write the whole path, or ./{path} for a folder of that name")
    return expanded
