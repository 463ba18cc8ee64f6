"""Messages for the user: one line each on stderr, above any progress bar, and only a few of a kind."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from customized_grpo.files import PACKAGE

NAMED_PROMPTS = 3  # how many prompts get a warning of their own


class LongPrompts:
    """Warns about prompts longer than a model reads: the first few once each, then once that there are more."""

    def __init__(self):
        self._warned: set[str] = set()

    def warn(self, prompt: str, problem: str) -> None:
        """Warn of `problem`, unless this prompt or enough others had a warning already."""
        if prompt in self._warned or len(self._warned) > NAMED_PROMPTS:
            return
        self._warned.add(prompt)
        if len(self._warned) <= NAMED_PROMPTS:
            warnings.warn(f"{problem}: {prompt!r}", stacklevel=3)
        else:
            warnings.warn("more prompts are too long; they are not listed", stacklevel=3)


def print_line(line: str) -> None:
    """Print a line to stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def show_in_lines() -> None:
    """From now on print each warning of this package as one line; warnings of libraries are shown as usual."""
    show_as_usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
            print_line(f"warning: {message}")
        else:
            show_as_usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show
