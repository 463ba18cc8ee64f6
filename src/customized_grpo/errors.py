"""The two roots of every error that the command line reports as one line. All else is a bug and keeps its traceback.

Each leaf is also the standard type that it specialises (`ValueError`, `RuntimeError`, `OSError`), so that code which
uses this package as a library can catch what it would catch anyway.
"""

from __future__ import annotations


class InputError(Exception):
    """The user's input cannot be used: exit code 2. The message says what was wrong and the way out."""


class RunError(Exception):
    """Work that had started with good input cannot go on: exit code 1. The message says how to continue."""


class UsageError(InputError, ValueError):
    """An option, argument or path that cannot be used as given."""
