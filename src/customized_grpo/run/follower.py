"""What training needs from a run's folder, and the version for processes that only read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from customized_grpo.config import RunConfig
from customized_grpo.files.pictures import Shown
from customized_grpo.policies.base import Policy
from customized_grpo.run.checkpoints import Best, newest_intact
from customized_grpo.run.directory import Shadows, restore_checkpoint
from customized_grpo.run.logs import LogRow, read_logs
from customized_grpo.run.state import Position


class RunFiles(Protocol):
    """The files of a run: `RunDirectory` in the process that writes them, `FollowedDirectory` in all others."""

    path: Path
    notices: list[str]  # settings that changed since the last start, one line each

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows) -> Position:
        """Load the newest intact checkpoint; returns its position, the first one if there is none."""
        ...

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        """The rows of updates and of evaluations so far."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the row of an update."""
        ...

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Log the row of an evaluation and save the cases shown with it."""
        ...

    def checkpoint(
        self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows
    ) -> None:
        """Save what `restore` loads."""
        ...

    def save_best(self, about: Best, policy: Policy) -> None:
        """Save the adapter of the best evaluation so far."""
        ...

    def finish(self, policy: Policy, shadows: Shadows) -> None:
        """Save the final adapter, and its moving average if there is one."""
        ...

    def pause(self, update: int) -> str:
        """The message of a run that was asked to stop after this update."""
        ...

    def close(self) -> None:
        """Release everything, whether the run finished, stopped or failed."""
        ...


class FollowedDirectory:
    """The folder that the first process writes to. This process reads it when the run is resumed, and nothing else."""

    def __init__(self, config: RunConfig):
        self.config, self.path = config, Path(config.output)
        self.notices: list[str] = []

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows) -> Position:
        checkpoint, _ = newest_intact(self.path)  # the first process has already renamed damaged ones
        return restore_checkpoint(checkpoint, policy, optimizer, self.config.seed, shadows)

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        return read_logs(self.path)

    def log(self, row: Mapping[str, Any]) -> None: ...

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None: ...

    def checkpoint(
        self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows
    ) -> None: ...

    def save_best(self, about: Best, policy: Policy) -> None: ...

    def finish(self, policy: Policy, shadows: Shadows) -> None: ...

    def pause(self, update: int) -> str:
        return f"stopped after update {update}"

    def close(self) -> None: ...
