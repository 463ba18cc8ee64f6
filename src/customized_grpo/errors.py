"""The two roots of every error that the command line prints as one line. Any other exception is a bug: a traceback.

Each leaf is also the standard type that it specialises (`ValueError`, `RuntimeError`, `OSError`), so that code which
uses this package as a library can catch the type it would expect.
"""

from __future__ import annotations


class InputError(Exception):
    """The user's input cannot be used: exit code 2. The message states what is wrong and how to fix it."""


class RunError(Exception):
    """Work that started with valid input cannot continue: exit code 1. The message states how to continue."""


class UsageError(InputError, ValueError):
    """An option, argument or path that cannot be used as given."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
