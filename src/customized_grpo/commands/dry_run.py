"""`customized-grpo train --dry-run`: what is wrong with a run, and what it will do, in seconds."""

from __future__ import annotations

import typer

from customized_grpo.config import RunConfig
from customized_grpo.files.pretrained import ModelError
from customized_grpo.training.check import dry_run


def check_training(config: RunConfig, *, resume: bool) -> None:
    """Check all but weights; say what `groups.batch: auto` will choose. Raises ConfigError with all problems."""
    if config.groups.batch is not None:
        typer.echo(f"note: {_foreseen(config, resume=resume)}", err=True)
    dry_run(config, resume=resume)


def _foreseen(config: RunConfig, *, resume: bool) -> str:
    from customized_grpo.cost.batches import planned

    try:
        choice = planned(config, resume=resume)
    except ModelError as error:
        return f"groups.batch=auto: what it chooses is not known here: {error}"
    later = "chosen from the card's free memory when training starts; `plan` says how many on which card"
    return str(choice) if choice else f"groups.batch=auto: {later}"
