"""What a command is wrapped in: an error of memory says what to do, and Ctrl-C what is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from customized_grpo.files.paths import as_argument
from customized_grpo.runtime.stopping import ending
from customized_grpo.wording import counted

P = ParamSpec("P")
ANEW = "nothing is kept; the same command begins anew"


def guarded(kept: str = ANEW) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A decorator of commands. Out of memory is a RunError that says what to do.

    kept  what SIGINT and SIGTERM say until the command itself has more to say
    """

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        @wraps(command)
        def run(*arguments: P.args, **options: P.kwargs) -> None:
            with ending(lambda: kept):
                try:
                    command(*arguments, **options)
                except RuntimeError as error:
                    from customized_grpo.runtime.memory import raise_if_exhausted  # imports torch: a second

                    raise_if_exhausted(error)
                    raise

        return run

    return decorate


def kept_rows(folder: Path | None) -> str:
    """What an evaluation keeps that ends now; None if it does not know its folder yet."""
    if folder is None:
        return "nothing was added to what is kept; the same command goes on"
    file = folder / "rows.jsonl"  # here, because the module that writes it imports torch
    rows = file.read_bytes().count(b"\n") if file.is_file() else 0
    return f"{_counted(rows)} kept in {folder}; the same command goes on" if rows else ANEW


def kept_pictures(count: int, folder: Path) -> str:
    """What `generate` keeps that ends after so many files."""
    way_on = "remove them or name another --output, then the same command begins anew"
    return f"{_counted(count)} kept in {folder}; {way_on}" if count else ANEW


def _counted(images: int) -> str:
    return f"{counted(images, 'image')} {'is' if images == 1 else 'are'}"


def kept_stages(work: Path) -> str:
    """What a build keeps that ends now."""
    kept = f"each stage is kept in {work} up to its last save; the same command goes on"
    return kept if any(work.glob("*.safetensors")) else ANEW


def kept_run(folder: Path) -> str:
    """What a run keeps that ends now, outside of its updates."""
    if not (folder / "environment.json").is_file():
        return ANEW
    return f"what was saved in {folder} is kept; go on with: customized-grpo train {as_argument(folder)} --resume"


def kept_demo(folder: Path) -> str:
    """What a demo keeps that ends now: at most its run."""
    run = folder / "run"
    if not (run / "adapter").is_dir():
        return kept_run(run)
    return f"the trained run is kept in {run}; measure it with: customized-grpo evaluate {as_argument(run)}"
