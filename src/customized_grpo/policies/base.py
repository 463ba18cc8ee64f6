"""What rollout, trainer and evaluation ask of a model family. One file per family implements it.

Conventions, everywhere: sigma = 1 is noise, sigma = 0 the image; x_sigma = (1 - sigma) x_0 + sigma eps;
velocity v = eps - x_0. The first dimension of latents is the batch; the family decides about the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from customized_grpo.data import Sample
from customized_grpo.sections import Adapter, Model


class Condition(Protocol):
    """What a batch of images is generated from: one entry per image, its encoded prompt and references.

    Entries may have different numbers of references; the family groups them for its forward passes.
    """

    def __len__(self) -> int: ...

    def repeat(self, count: int) -> Self:
        """Every entry `count` times in a row: a batch of prompts becomes a batch of groups."""
        ...

    def __getitem__(self, part: slice | Tensor) -> Self:
        """Some of the entries, by slice, indices or mask, as if this were a tensor [entries]."""
        ...


# Layers that get an adapter: a named set whose meaning the family decides, or names; None: the family's default.
Targets: TypeAlias = str | Sequence[str] | None
# A condition from the policy's own `encode`: a family never reads the conditions of another.
OwnCondition: TypeAlias = Any


class Policy(Protocol):
    """A reference-conditioned flow-matching generator with a trainable adapter.

    What a user can cause (a damaged model or adapter, a setting that the model cannot take) is an `InputError` with a
    message of one line; torch.OutOfMemoryError passes through. No method uses torch's global random state.
    """

    usual_steps: ClassVar[int]  # the number of denoising steps that this family is usually sampled with
    module: nn.Module  # the network that holds the adapter
    device: torch.device  # of latents, conditions and the adapter

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:
        """The generator in `path` (a folder or hub id) in eval mode, all weights frozen, without an adapter.

        model  the section of the configuration: dtype, picture size in pixels, guidance, memory
        shard  leave on the CPU what the method `shard` divides

        Raises ModelError if the checkpoint cannot be used, UsageError if it cannot take one of the settings.
        """
        ...

    @classmethod
    def adapter_size(cls, path: str | Path, model: Model, adapter: Adapter) -> int | None:
        """The number of weights of the adapter that `add_adapter` would make; uses no network, loads no weights.

        path  a folder, or a hub id; None is returned if what describes the network is not in the hub's cache

        Raises UsageError for settings that `load` or `add_adapter` would refuse, and ModelError for a damaged file.
        """
        ...

    def add_adapter(
        self, rank: int, alpha: float, targets: Targets = None, *, seed: int = 0, share_qkv: bool = False
    ) -> None:
        """Add a new adapter, trainable and in float32, that does not change the output yet. Call it once.

        rank, alpha  the adapter's update is scaled by alpha / rank
        targets      the layers to adapt; the family knows the sets "attention", "attention_and_output" and "all"
        seed         of its initial weights
        share_qkv    q, k and v of an attention layer share the matrix A, as if they were one fused layer

        Raises UsageError if a target matches no layer that can be adapted, or q, k and v cannot share.
        """
        ...

    def shard(self) -> None:
        """Divide the frozen weights among the processes. Call it after `add_adapter`: the adapter is not divided."""
        ...

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        """The noise grid [num_steps + 1], on the CPU, strictly falling from 1 to 0.

        shift  a number for `sigma_schedule`, or "checkpoint" for the schedule that the model comes with

        Raises UsageError if the model comes with no usable schedule.
        """
        ...

    def sized(self, height: int, width: int) -> AbstractContextManager[None]:
        """A block in which schedules, conditions and pictures are for this size in pixels, not for that of `model`.

        A condition is used in the block in which it was encoded. Raises UsageError if the model cannot take the size.
        """
        ...

    def encode(self, samples: Sequence[Sample]) -> Condition:
        """One entry per sample, independent of the other samples. Raises DataError if a reference is unreadable."""
        ...

    def noise(self, condition: OwnCondition, seeds: Sequence[int]) -> Tensor:
        """Initial latents [N, ...] at sigma = 1 in float32, entry i from seeds[i] alone: no batch or rank matters.

        Raises ValueError unless there is one seed per entry.
        """
        ...

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: OwnCondition) -> Tensor:
        """Velocity at `sigma` in the latents' shape, float32; differentiable in the adapter's weights.

        sigma  one for all entries, or [N]; the model must see it exactly, not rounded to its own precision

        Rollout and update both call this, with batches of different sizes.
        """
        ...

    def decode(self, latents: Tensor, condition: OwnCondition) -> Tensor:
        """Images [N, 3, H, W] in [0, 1], float32, from latents at sigma = 0. No gradient."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by name; the same order in every process."""
        ...

    def base_policy(self) -> AbstractContextManager[None]:
        """A block in which the adapter is off."""
        ...

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter into a folder, made if missing, in the file `ADAPTER_FILE` of `adapter_file.py`.

        The family's plain diffusers pipeline must be able to read it with `load_lora_weights`. Raises OSError or
        SafetensorError if the disk is full or cannot be written to.
        """
        ...

    def load_adapter(self, path: Path) -> None:
        """Load what `save_adapter` wrote into the adapter; if there is none yet, create it, trainable.

        path  a folder with `ADAPTER_FILE`, or a file of another name, perhaps from another program

        Raises ModelError if the file is missing, damaged, or does not fit. Every tensor of it is honoured, or refused.
        """
        ...
