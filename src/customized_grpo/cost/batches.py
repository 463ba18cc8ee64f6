"""`groups.batch: auto`: how many images a pass takes, before anything is loaded.

Planned memory decides, not trials on the device: so `plan` can say beforehand what `train` will do.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from customized_grpo.config import CONFIG, RunConfig, load_config
from customized_grpo.cost.estimate import Estimate, estimate
from customized_grpo.cost.measured import Measured, Settings, measured
from customized_grpo.runtime.device import missing_here, named_device
from customized_grpo.runtime.distributed import Processes
from customized_grpo.wording import counted

OF_PROCESSOR = 24  # images per pass without CUDA: larger ones are not faster, docs/performance.md
OF_CARD = 64  # images per pass on a card with room for more: more only needs memory, and risks running out of it
SPARE = 0.07  # share of a card's free memory that stays free: gaps between tensors, and CUDA itself
FEW, MORE = 2, 4  # images per pass that are measured; from two on, memory grows in a straight line
BY_BATCH = ("sampling", "training", "decoding", "evaluation", "showing")  # costs that grow with the batch


@dataclass(frozen=True)
class Choice:
    """Images per pass, in rollout and update alike, and why so many."""

    batch: int
    reason: str

    def __str__(self) -> str:
        return f"groups.batch=auto: {counted(self.batch, 'image')} per pass, {self.reason}"


def with_batch(config: RunConfig, batch: int) -> RunConfig:
    """The configuration with this batch in rollout and update."""
    groups = config.groups.model_copy(update={"rollout_batch": batch, "update_batch": batch})
    return config.model_copy(update={"groups": groups})


def settled(config: RunConfig, *, resume: bool) -> tuple[RunConfig, Choice | None]:
    """The configuration to train with, and what `auto` chose; unchanged and None without `auto`.

    A run that is resumed goes on with the figures that it began with, whatever is free now: they decide rounding.
    Several processes all take what the fullest of their devices has room for.

    Raises ModelError if the model's costs cannot be estimated, UsageError if the device is not there.
    """
    if config.groups.batch is None:
        return config, None
    choice = _kept(config) if resume else None
    if choice is None:
        processes = Processes(config.device)
        choice = choose(config, _free(processes), processes=processes.count)
    return with_batch(config, choice.batch), choice


def _kept(config: RunConfig) -> Choice | None:
    """What the run in the configured folder began with; None if it had no `auto`, or there is none."""
    if not (file := Path(config.output) / CONFIG).exists():
        return None
    groups = load_config(str(file)).groups
    return None if groups.batch is None else Choice(groups.rollout_batch, "as the run began")


def _free(processes: Processes) -> int | None:
    """The bytes that are free on the device of every process; None without CUDA."""
    device = torch.device(str(processes.device))
    if device.type != "cuda":
        return None
    free = torch.tensor([torch.cuda.mem_get_info(device)[0]])
    return int(processes.gather(free, processes.count).min())


def planned(config: RunConfig, *, resume: bool = False, references: int = 1, processes: int = 1) -> Choice | None:
    """What `auto` would choose on the configured device of this machine; None if it is a card that is not here."""
    if resume and (choice := _kept(config)) is not None:
        return choice
    device = named_device(config.device)
    if device.type != "cuda":
        return choose(config, None, processes=processes)
    if missing_here(device):
        return None
    return choose(config, torch.cuda.mem_get_info(device)[0], references=references, processes=processes)


def choose(config: RunConfig, free: int | None, *, references: int = 1, processes: int = 1) -> Choice:
    """The largest useful batch that fits, but no larger than passes of about equal size need.

    free  bytes of the device, before anything is loaded; None: not a limit, as on a CPU

    If not even one image fits by plan, one image is tried. Raises ModelError like `measured`.
    """
    images = -(-config.groups.prompts // processes) * config.groups.size
    if free is None:
        batch = evened(images, min(OF_PROCESSOR, images))
        return Choice(batch, f"as larger ones are not faster on {config.device}")
    room, most = (1 - SPARE) * free, min(OF_CARD, images)

    def peak(batch: int) -> int:
        return at_batch(config, batch, references, processes).peak

    largest = bisect_right(range(1, most + 1), room, key=peak)  # memory grows with the batch
    batch = evened(images, largest) if largest else 1
    fits = "" if largest else ", which does not fit"
    return Choice(batch, f"{peak(batch) / 1e9:.1f} GB by plan{fits}; {free / 1e9:.1f} GB are free")


def evened(images: int, largest: int) -> int:
    """The batch with which `images` go into as few passes as with `largest`, all of about the same size."""
    return -(-images // -(-images // largest))


def at_batch(config: RunConfig, batch: int, references: int, processes: int) -> Estimate:
    """The estimate with this batch, from two measured ones: seconds for all batches together."""
    few, more = (measured(Settings.of(with_batch(config, each), references)) for each in (FEW, MORE))
    costs = few if batch <= FEW else _between(few, more, (batch - FEW) / (MORE - FEW))
    return estimate(with_batch(config, batch), references=references, processes=processes, costs=costs)


def _between(few: Measured, more: Measured, share: float) -> Measured:
    """Costs on the line through two measured ones: at the first with share 0, at the second with 1."""
    costs = {name: getattr(few, name) + share * (getattr(more, name) - getattr(few, name)) for name in BY_BATCH}
    return replace(few, **costs)
