"""The state in which an update begins, so that one that ran out of memory can be repeated as if nothing had happened.

Whatever the update has reached, an optimiser step of several or half of one, all that it changes is brought back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.shadow import Shadow
from customized_grpo.training.learner import Learner


class Before:
    """Copies, in the memory of the CPU, of the adapter, its shadows, the optimiser's state and torch's random state.

    They cost three times the adapter in float32, and once more for each shadow.
    """

    def __init__(self, learner: Learner, shadows: Sequence[Shadow]):
        self.learner, self.steps = learner, learner.steps
        weights = [*learner.parameters, *(weight for shadow in shadows for weight in shadow.weights)]
        moments = [
            value
            for state in learner.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        self.known = set(learner.optimizer.state)  # parameters that have moments: all, or before the first step none
        self.copies = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in (*weights, *moments)]
        self.random = torch.get_rng_state(), _random_of_cards()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring it all back in place: the optimiser and the shadows know their tensors by identity."""
        for tensor, copy in self.copies:
            tensor.copy_(copy)
        state = self.learner.optimizer.state
        for parameter in [each for each in state if each not in self.known]:
            del state[parameter]
        self.learner.steps = self.steps
        torch.set_rng_state(self.random[0])
        if self.random[1]:
            torch.cuda.set_rng_state_all(self.random[1])


def _random_of_cards() -> list[Any]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
