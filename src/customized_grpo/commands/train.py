"""`customized-grpo train`: a run from its first line on the terminal to its last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from customized_grpo.config import RunConfig
from customized_grpo.errors import InputError, RunError
from customized_grpo.files.paths import as_argument
from customized_grpo.run.checkpoints import FINAL, describe_best
from customized_grpo.runtime import launchers
from customized_grpo.training.advice import notices
from customized_grpo.training.assemble import assemble
from customized_grpo.training.record import held_out_summary


def run_training(config: RunConfig, *, resume: bool) -> None:
    """Train, and say before and after what a user should know."""
    trainer = assemble(config, resume=resume)
    main = trainer.processes.main
    told = (*trainer.directory.notices, *launchers.notices(), *notices(trainer.plan))
    for notice in told if main else ():
        typer.echo(f"note: {notice}", err=True)
    with _as_failure_of_the_run():
        trainer.train()
    if main:
        path = trainer.directory.path
        if summary := held_out_summary(trainer.directory.logs()[1]):
            typer.echo(summary, err=True)
        if best := describe_best(path):
            typer.echo(best, err=True)
        typer.echo(f"as a page: customized-grpo report {as_argument(path)}", err=True)
        typer.echo(f"adapter: {path / FINAL}")


@contextmanager
def _as_failure_of_the_run() -> Iterator[None]:
    """Bad input that shows only during a run, such as a deleted photograph, is a failure of the run."""
    try:
        yield
    except InputError as error:
        raise RunError(str(error)) from error
