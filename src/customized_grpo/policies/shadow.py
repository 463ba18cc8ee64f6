"""A copy of an adapter's weights that follows them slowly: an exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.policies.base import Policy


class Shadow:
    """The weights s of a policy's adapter, s <- decay s + (1 - decay) w after every `every` optimiser steps.

    It starts as a copy and costs as much memory as the adapter, not as the model.

    decay    in [0, 1); 0 copies
    warm_up  the n-th time, decay is at most (1 + n) / (10 + n), as in diffusers' EMAModel: the average then soon
             forgets the untrained adapter that it began with
    """

    def __init__(self, policy: Policy, decay: float, every: int = 1, *, warm_up: bool = False):
        self.policy, self.decay, self.every, self.warm_up = policy, decay, every, warm_up
        self.parameters: list[Tensor] = [*policy.trainable_parameters().values()]
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Take a step towards the adapter; `steps` is the number of optimiser steps so far."""
        times, rest = divmod(steps, self.every)
        if rest == 0:
            decay = min(self.decay, (1 + times) / (10 + times)) if self.warm_up else self.decay
            torch._foreach_lerp_(self.weights, self.parameters, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the policy's adapter has these weights; train nothing in it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the numbers, not the tensors: the optimiser keeps its own by identity."""
        for weight, parameter in zip(self.weights, self.parameters, strict=True):
            kept = weight.clone()
            weight.copy_(parameter)
            parameter.copy_(kept)

    def save(self, folder: Path) -> None:
        """Write the weights as an adapter, as `Policy.save_adapter` does."""
        with self.in_place():
            self.policy.save_adapter(folder)

    def load(self, folder: Path) -> None:
        """Take the weights of an adapter that `save` wrote; the policy's own stay. Raises ModelError."""
        with self.in_place():
            self.policy.load_adapter(folder)
