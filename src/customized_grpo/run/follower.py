"""What training asks of a run's folder, and how a process answers that does not write into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from customized_grpo.config import RunConfig
from customized_grpo.files.pictures import Shown
from customized_grpo.policies.base import Policy
from customized_grpo.run.checkpoints import Position, newest_whole
from customized_grpo.run.directory import LogRow, restore_checkpoint
from customized_grpo.run.logs import read_logs


class RunFiles(Protocol):
    """The files of a run: `RunDirectory` in the process that writes them, `FollowedDirectory` in all others."""

    path: Path
    notices: list[str]  # what is another than before, one sentence each

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer) -> Position:
        """Go on from the newest whole checkpoint; returns its position, (0, 0) where there is none."""
        ...

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        """The rows of updates and of evaluations so far."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep the row of an update."""
        ...

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Keep the row of an evaluation and the cases that are shown of it."""
        ...

    def checkpoint(self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Save what `restore` goes on from."""
        ...

    def finish(self, policy: Policy) -> None:
        """Save the final adapter."""
        ...

    def pause(self, update: int) -> str:
        """For a run that is asked to stop after this update; returns how to go on, in words."""
        ...

    def close(self) -> None:
        """For a run that ended, however it did."""
        ...


class FollowedDirectory:
    """The folder that the first process writes: read where a run goes on, left alone otherwise."""

    def __init__(self, config: RunConfig):
        self.config, self.path = config, Path(config.output)
        self.notices: list[str] = []

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer) -> Position:
        found, _ = newest_whole(self.path)  # the first process went on from it, and has set damaged ones aside
        return restore_checkpoint(found, policy, optimizer, self.config.seed)

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        return read_logs(self.path)

    def log(self, row: Mapping[str, Any]) -> None: ...

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None: ...

    def checkpoint(self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer) -> None: ...

    def finish(self, policy: Policy) -> None: ...

    def pause(self, update: int) -> str:
        return f"stopped after update {update}"

    def close(self) -> None: ...
