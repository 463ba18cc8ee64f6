"""Around code that is not ours, such as a user's reward or another package: its exceptions become one line each."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.errors import InputError, RunError
from customized_grpo.files import PACKAGE
from customized_grpo.files.own_modules import as_written

_LIBRARIES = tuple({sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")})
_MACHINERY = (str(PACKAGE), str(Path(importlib.__file__).parent), "<frozen ")  # what calls the user's code


class OwnCodeError(InputError, RuntimeError):
    """The user's own code cannot be imported, or raised an exception while its class was made."""


@contextmanager
def user_code(failure: str, error_class: type[InputError] = OwnCodeError) -> Iterator[None]:
    """Around a block that runs code of others: its exceptions become an `error_class`, with file and line.

    An InputError, a RunError and torch's error of memory pass through.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except (Exception, SystemExit) as error:
        from torch import OutOfMemoryError  # late, because a configuration is read without torch

        if isinstance(error, OutOfMemoryError):
            raise
        raise error_class(f"{failure}: {described(error)}; {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"install {missing} or correct the code" if missing not in {"", *sys.modules} else "correct the code"


def described(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, file and line."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"{type(error).__name__}: {as_written(message)}" if message else type(error).__name__
    return " ".join(f"{text} {_place(error)}".split())


def _place(error: BaseException) -> str:
    """The deepest line of the user's code that led to an exception, or of any code; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"({error.filename}, line {error.lineno or 1})"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(_MACHINERY)]
    own = [each for each in frames if not each.filename.startswith(_LIBRARIES)]
    return next((f"({each.filename}, line {each.lineno})" for each in reversed(own or frames)), "")
