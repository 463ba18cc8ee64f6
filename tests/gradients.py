"""The gradients of optimiser steps, recorded before the trainer clears them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from customized_grpo.training.trainer import Trainer


@contextmanager
def gradients_of(trainer: Trainer) -> Iterator[list[Tensor]]:
    """The gradient of every optimiser step in the block, flattened; zero for weights without one."""
    gradients: list[Tensor] = []

    def keep(*_: object) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.learner.parameters]
        gradients.append(torch.cat([grad.flatten() for grad in grads]))

    hook = trainer.learner.optimizer.register_step_pre_hook(keep)
    yield gradients
    hook.remove()
