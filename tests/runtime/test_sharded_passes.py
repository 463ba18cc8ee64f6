"""Sharded weights need equally many passes in all processes: also where batches differ in size and in references."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_models
from customized_grpo.data import Sample
from customized_grpo.policies import load_policy
from customized_grpo.runtime.distributed import Processes
from customized_grpo.sections import Model
from processes import in_processes

CHECKPOINTS = {"klein": tiny_models.klein, "qwen": tiny_models.qwen_edit}
SIZES = {  # of the references in each process's batch
    "one picture against two": ([(64, 64)], [(64, 64), (64, 64)]),
    "two shapes against one": ([(64, 64), (96, 64)], [(64, 64), (64, 64)]),
    "three shapes against one picture": ([(64, 64), (96, 64), (64, 96)], [(64, 64)]),
}


def batch(sizes: list[tuple[int, int]]) -> list[Sample]:
    colours = [Image.effect_noise(size, 80).convert("RGB") for size in sizes]
    return [Sample(f"s{n}", f"s{n}", "a dog" + " there" * n, (colour,)) for n, colour in enumerate(colours)]


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_processes_whose_batches_differ_compute_what_one_computes(family: str, case: str, tmp_path: Path):
    path = tiny_models.saved(CHECKPOINTS[family](), tmp_path / family)
    settings: dict[str, Any] = {"height": 64, "width": 64, "dtype": "float32", "max_sequence_length": 32}
    model = Model(path=str(path), reference_size=96, guidance=4.0, **settings)
    batches = [batch(sizes) for sizes in SIZES[case]]

    def compute(index: int, *, shard: bool) -> dict[str, Any]:
        policy: Any = load_policy(model, "cpu", shard=shard)
        policy.add_adapter(2, 4.0, seed=1)
        for number, weight in enumerate(policy.trainable_parameters().values()):
            weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(number))
        if shard:
            policy.shard()
        condition = policy.encode(batches[index])
        noise = policy.noise(condition, range(len(condition)))
        with torch.no_grad():
            rolled_out = policy.velocity(noise, 0.7, condition)
        velocity = policy.velocity(noise, 0.7, condition)
        velocity.square().mean().backward()
        weights = policy.trainable_parameters().values()  # those of Qwen's last text layer decide nothing
        gradients = [weight.grad.flatten() for weight in weights if weight.grad is not None]
        return {"rollout": rolled_out, "velocity": velocity.detach(), "gradient": torch.cat(gradients)}

    def work() -> None:
        index = Processes("cpu").index
        torch.save(compute(index, shard=True), tmp_path / f"{index}.pt")

    in_processes(2, work, tmp_path)
    for index in range(2):
        whole, sharded = compute(index, shard=False), torch.load(tmp_path / f"{index}.pt")
        for name, value in whole.items():
            assert ((value - sharded[name]).norm() / value.norm()).item() < 1e-4, name
