"""The libraries that quantise, by name: no import, so that a dry run can say that one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

Kind = Literal["int8", "fp8", "nf4"]
# The library of each kind, and the extra of this package that installs it.
LIBRARIES: dict[Kind, tuple[str, str]] = {
    "int8": ("torchao", "quantise"),
    "fp8": ("torchao", "quantise"),
    "nf4": ("bitsandbytes", "nf4"),
}


def needed(kind: Kind) -> str:
    """What a user must install, as a message."""
    library, extra = LIBRARIES[kind]
    return f'model.quantise={kind} needs {library}; pip install "customized-grpo[{extra}]"'


def missing_library(kind: Kind) -> str | None:
    """The message, if the library is not installed."""
    return needed(kind) if find_spec(LIBRARIES[kind][0]) is None else None
