"""Running without numbers: operations and memory are those of the real run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from customized_grpo.cost.simulated import Pass, measure, simulation, size_of, tensors_of
from measured_memory import peak_of


class Block(nn.Module):
    """Attention of 4 heads and a layer four times as wide, with or without checkpointing."""

    def __init__(self, width: int, *, checkpointed: bool):
        super().__init__()
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.checkpointed = checkpointed

    def _run(self, tokens: Tensor) -> Tensor:
        parts = self.project(tokens).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(attended)
        return tokens + self.down(F.gelu(self.up(tokens)))

    def forward(self, tokens: Tensor) -> Tensor:
        return checkpoint(self._run, tokens, use_reentrant=False) if self.checkpointed else self._run(tokens)


def stack(blocks: int, *, checkpointed: bool) -> nn.Sequential:
    return nn.Sequential(*(Block(64, checkpointed=checkpointed) for _ in range(blocks)))


def planned(make: Callable[[], nn.Module], tokens: int, *, gradient: bool) -> Pass:
    with torch.device("meta"):
        module = make()
    with simulation([module]):
        inputs = torch.randn(2, tokens, 64)
        for weight in module.parameters():
            weight.grad = torch.zeros_like(weight)
        before = [inputs, *tensors_of(module), *(w.grad for w in module.parameters() if w.grad is not None)]
        return measure(lambda: run(module, inputs, gradient=gradient), before)


def run(module: nn.Module, inputs: Tensor, *, gradient: bool) -> None:
    with torch.set_grad_enabled(gradient):
        result = module(inputs)
    if gradient:
        result.sum().backward()


def real(make: Callable[[], nn.Module], tokens: int, *, gradient: bool) -> int:
    module, inputs = make(), torch.randn(2, tokens, 64)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    return peak_of(lambda: run(module, inputs, gradient=gradient))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_memory_is_that_of_a_real_run(blocks: int, checkpointed: bool, gradient: bool):
    def make() -> nn.Module:
        return stack(blocks, checkpointed=checkpointed)

    cost = planned(make, 256, gradient=gradient)
    # The kernel of attention's backward pass has a buffer of its own.
    assert cost.memory == pytest.approx(real(make, 256, gradient=gradient), rel=0.06 if gradient else 0.005)


def test_operations_by_hand():
    """Per token and block 2 (3 + 1 + 4 + 4) 64^2, and 4 x 64 per pair of tokens for attention."""
    tokens = 2 * 128
    forward = tokens * 2 * 12 * 64**2 + 2 * 128 * 128 * 4 * 64
    assert planned(lambda: stack(1, checkpointed=False), 128, gradient=False).flops == forward


def test_checkpointing_computes_every_block_once_more():
    """But for its last product, which no gradient needs: 2 x 4 x 64^2 per token."""
    forward = planned(lambda: stack(3, checkpointed=False), 64, gradient=False).flops
    plain = planned(lambda: stack(3, checkpointed=False), 64, gradient=True).flops
    again = planned(lambda: stack(3, checkpointed=True), 64, gradient=True).flops
    assert again - plain == forward - 3 * (2 * 64) * 2 * 4 * 64**2


def test_shared_memory_counts_once():
    weight = nn.Parameter(torch.zeros(10, 10))
    assert size_of([weight, weight, weight[:5], torch.zeros(3)]) == 4 * (100 + 3)
