"""`customized-grpo train`: a run from its first line on the terminal to its last."""

from __future__ import annotations

import typer

from customized_grpo.commands.start import begin, finish
from customized_grpo.config import RunConfig
from customized_grpo.files.adapter_places import FINAL
from customized_grpo.files.paths import as_argument
from customized_grpo.run.checkpoints import describe_best
from customized_grpo.training.record import held_out_summary


def run_training(config: RunConfig, *, resume: bool) -> None:
    """Train, and say before and after what a user should know."""
    trainer, told = begin(config, resume=resume)
    main = trainer.processes.main
    for notice in told if main else ():
        typer.echo(f"note: {notice}", err=True)
    finish(trainer)
    if main:
        path = trainer.directory.path
        if summary := held_out_summary(trainer.directory.logs()[1]):
            typer.echo(summary, err=True)
        if best := describe_best(path):
            typer.echo(best, err=True)
        typer.echo(f"as a page: customized-grpo report {as_argument(path)}", err=True)
        typer.echo(f"adapter: {path / FINAL}")
