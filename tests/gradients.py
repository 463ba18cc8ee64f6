"""The gradient that an optimiser step gets: afterwards it is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from customized_grpo.training.trainer import Trainer


@contextmanager
def gradients_of(trainer: Trainer) -> Iterator[list[Tensor]]:
    """The gradients of all optimiser steps inside, each in one row; zeros where a weight has none."""
    found: list[Tensor] = []

    def keep(*_: object) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.parameters]
        found.append(torch.cat([grad.flatten() for grad in grads]))

    hook = trainer.optimizer.register_step_pre_hook(keep)
    yield found
    hook.remove()
