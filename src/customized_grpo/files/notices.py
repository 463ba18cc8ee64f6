"""Warnings as a user reads them: a line each, and few of a kind."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from customized_grpo.files import PACKAGE

SHOWN = 3  # prompts of which a warning speaks by name


class LongPrompts:
    """Prompts that are longer than a model reads: the first few are said once each, then that there are more."""

    def __init__(self):
        self._said: set[str] = set()

    def warn(self, prompt: str, what: str) -> None:
        """`what` is said of a prompt that was not spoken of yet."""
        if prompt in self._said or len(self._said) > SHOWN:
            return
        self._said.add(prompt)
        said = f"{what}: {prompt!r}" if len(self._said) <= SHOWN else "more prompts are too long, and are not named"
        warnings.warn(said, stacklevel=3)


def show_in_lines() -> None:
    """From here on the package's own warnings are one line on stderr, above any progress bar; others are as ever."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
            tqdm.write(f"warning: {message}", file=sys.stderr)
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
