"""A run from its configuration to its adapter: what the command `train` and Python both start."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customized_grpo.config import RunConfig
from customized_grpo.cost.batches import settled
from customized_grpo.errors import InputError, RunError
from customized_grpo.files.adapter_places import FINAL, bests_of
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.logs import read_logs
from customized_grpo.runtime import launchers
from customized_grpo.runtime.memory import raise_if_exhausted
from customized_grpo.training.advice import notices
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer

INTERRUPTED = 130  # exit code of a run that stopped at Ctrl-C
Row = Mapping[str, Any]  # of metrics.jsonl


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what is in it."""

    path: Path
    config: RunConfig = field(repr=False)

    @property
    def adapter(self) -> Path:
        """Folder of the final adapter, as diffusers' `load_lora_weights` and `customized-grpo generate` take it."""
        return self.path / FINAL

    @property
    def best(self) -> Path | None:
        """Folder of the adapter with the best `keep_best`; None without that setting."""
        return next(reversed(bests_of(self.path)), None)

    @property
    def updates(self) -> list[dict[str, Any]]:
        """One row per update, as in metrics.jsonl: rewards, conflict, weights by step: docs/training.md"""
        return read_logs(self.path)[0]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One row per evaluation of the held-out cases, as in evaluations.jsonl; the first is that of the base."""
        return read_logs(self.path)[1]

    @property
    def figures(self) -> dict[str, float]:
        """The last evaluation's figures by name, such as "joint_success"; empty without evaluations."""
        last = next(reversed(self.evaluations), {})
        return {name: value for name, value in last.items() if name != "update" and isinstance(value, int | float)}


def train(
    config: RunConfig,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    on_update: Callable[[Row], None] | None = None,
) -> Run:
    """Train an adapter, as the command `train` does.

    output     folder of the run; None: `config.output`
    resume     continue the run in that folder, which then is the same as one that was never interrupted
    on_update  called after each update with its row of metrics.jsonl; with several processes only in the first one.
               An exception of it ends the run, which can be resumed

    Ctrl-C, or a notebook's stop button, ends the run after its update is saved, with KeyboardInterrupt and how to go
    on; SIGTERM raises SystemExit. Advice about the settings comes as warnings. Sets torch's global seed.

    Raises InputError before anything is trained, and RunError if the run cannot go on: its message says what to do.
    """
    if output is not None:
        config = config.with_settings(("output", output))
    with _errors_of_memory():
        trainer, told = begin(config, resume=resume)
        if isinstance(trainer.directory, RunDirectory):
            for notice in told:
                warnings.warn(notice, stacklevel=2)
            trainer.directory.on_update = on_update
        try:
            finish(trainer)
        except SystemExit as stopped:
            if stopped.code == INTERRUPTED:
                raise KeyboardInterrupt(f"continue with train(..., resume=True): {trainer.directory.path}") from None
            raise
    return Run(trainer.directory.path, trainer.config)


def begin(config: RunConfig, *, resume: bool) -> tuple[Trainer, list[str]]:
    """The trainer of a run, and what a user should know before it trains, one line each. Raises InputError."""
    config, choice = settled(config, resume=resume)
    trainer = assemble(config, resume=resume)
    chosen = [str(choice)] if choice else []
    return trainer, [*chosen, *trainer.directory.notices, *launchers.notices(), *notices(trainer.plan)]


def finish(trainer: Trainer) -> None:
    """Train to the last update. Raises RunError, also for input that turns out bad now (a deleted photograph)."""
    try:
        trainer.train()
    except InputError as error:
        raise RunError(str(error)) from error


@contextmanager
def _errors_of_memory() -> Iterator[None]:
    """Out of memory in the block is a RunError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        raise_if_exhausted(error)
        raise
