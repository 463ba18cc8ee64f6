"""Saves and restores what training changes; also saves before an error of a reward or an evaluation ends a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from customized_grpo.files.notices import print_line
from customized_grpo.policies.base import Policy
from customized_grpo.run.directory import Shadows
from customized_grpo.run.follower import RunFiles
from customized_grpo.run.state import Position
from customized_grpo.training.learner import Learner


@dataclass
class Saver:
    """The parts of training that checkpoints hold, and the last update that was saved."""

    directory: RunFiles
    policy: Policy
    learner: Learner
    shadows: Shadows
    saved: int = 0  # after this many updates

    def restore(self) -> Position:
        """Go on from the newest intact checkpoint; returns its position, the first one if there is none."""
        position = self.directory.restore(self.policy, self.learner.optimizer, self.shadows)
        self.saved = position.update
        return position

    def save(self, position: Position) -> None:
        """Save a checkpoint. Raises SavingError."""
        self.directory.checkpoint(position, self.policy, self.learner.optimizer, self.shadows)
        self.saved = position.update

    @contextmanager
    def before_error(
        self, position: Position, *, main: bool, row: Callable[[], Mapping[str, Any]] | None = None
    ) -> Iterator[None]:
        """If the block, which must not train anything, raises: save what was trained before, then let the error pass.

        A reward may fail after hours, because of its server or of one odd picture.

        row  makes the row of the last update, which is not logged yet: the block is the evaluation after it. Without
             one the block is part of an update, which is repeated if memory runs out; then nothing is saved.

        Raises SavingError.
        """
        try:
            yield
        except Exception as error:
            repeated = row is None and isinstance(error, torch.OutOfMemoryError)
            if position.update > self.saved and not repeated:
                if row is not None:
                    self.directory.log(row())
                self.save(position)
                if main:
                    print_line(f"note: {self.directory.pause(position.update)}")
            raise
