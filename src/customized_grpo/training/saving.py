"""Saves and restores what training changes; also saves before an error of a reward ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    def before_error(self, position: Position, *, main: bool) -> Iterator[None]:
        """If the block, which must not train anything, raises: save what was trained before, then let the error pass.

        A reward may fail after hours, because of its server or of one odd picture. Not if memory runs out: then the
        update is repeated. Raises SavingError.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if position.update > self.saved:
                self.save(position)
                if main:
                    print_line(f"note: {self.directory.pause(position.update)}")
            raise
