"""`train --dry-run`: all that can be known about a run before any weights are loaded, without the network.

Torch, diffusers and transformers are imported only for what cannot be known otherwise: they take longest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from customized_grpo.calibration.file import calibrated_rewards
from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.data import Sample
from customized_grpo.errors import InputError
from customized_grpo.fields import BUILT_IN
from customized_grpo.policies import adapter_size
from customized_grpo.policies.libraries import missing_library
from customized_grpo.run.access import check_access
from customized_grpo.run.base_adapter import check_own_base_adapter
from customized_grpo.run.trackers import Trackers
from customized_grpo.runtime.device import problem_here
from customized_grpo.training.kept_calibrations import kept_calibrations
from customized_grpo.training.samples import load_samples, own_samples, sample_problems


@dataclass
class Check:
    """What is wrong, and what could not be found out; one line each, in the order in which `train` would meet it."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def part(self) -> Iterator[None]:
        """A block whose error is one of the problems; the other parts are checked all the same."""
        try:
            yield
        except InputError as error:
            self.problems.append(str(error))


def check_run(config: RunConfig, *, resume: bool) -> Check:
    """Check device, folder, trackers, data, calibration, model, adapter and rewards as `assemble` does; write nothing.

    What depends on the number of processes is not checked: a dry run is one.
    """
    check = Check()
    with check.part():
        if problem := problem_here(config.device):
            check.notes.append(f"{problem}, if you train on this machine")
        if config.model.quantise and (problem := missing_library(config.model.quantise)):
            check.notes.append(f"{problem}, if you train on this machine")
    with check.part():
        check_access(config, resume=resume)
    with check.part():
        if resume:
            check_own_base_adapter(config.model, Path(config.output))
    with check.part():
        Trackers.check(config.tracking)
    with check.part():
        train, held_out = _samples(config, resume=resume)
        check.problems += sample_problems(config, train, held_out)
    with check.part():
        if config.evaluation_model != config.model:
            adapter_size(config.evaluation_model, config.adapter)
        size = adapter_size(config.model, config.adapter)
        check.notes.append(
            f"{config.model.path} is not in the hub's cache on this machine: model and adapter could not be checked"
            if size is None
            else f"the adapter has {size / 1e6:,.1f} M weights"
        )
    for reward in (*config.trained().values(), *map(config.resolve, config.evaluation.metrics)):
        with check.part():
            check.notes += [f"reward {reward.name}: {note}" for note in reward.check()]
    with check.part():
        kept = kept_calibrations(config, resume=resume)
        if kept is not None and (
            missing := [f"rewards.{key}" for key in calibrated_rewards(config) if key not in kept]
        ):
            check.notes.append(f"train measures the levels of {', '.join(missing)}, on bad and on good pictures")
    check.problems, check.notes = ([*dict.fromkeys(lines)] for lines in (check.problems, check.notes))
    return check


def _samples(config: RunConfig, *, resume: bool) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples of a run. Of critters one each stands for all: they differ in nothing that is
    checked, and drawing thousands takes seconds."""
    data = config.data
    if data.source not in BUILT_IN:
        return own_samples(config, resume=resume, check=False)[:2]
    one = data.model_copy(update={"train_samples": 1, "held_out_samples": 1})
    train, held_out = load_samples(config.model_copy(update={"data": one}))
    return train * (data.train_samples or 1), held_out * data.held_out_samples


def dry_run(config: RunConfig, *, resume: bool) -> None:
    """Print the notes of a check. Raises ConfigError with all problems."""
    check = check_run(config, resume=resume)
    for note in check.notes:
        print(f"note: {note}", file=sys.stderr)
    if check.problems:
        raise ConfigError("\n".join(check.problems))
