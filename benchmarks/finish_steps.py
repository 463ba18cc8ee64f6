"""How far pictures and rewards move if a solver of second order finishes them in fewer steps.

Each image gets noise in two steps, as in training with the recipe `critters`, and is then finished in the grid's own
steps, in fewer of second order (DPM-Solver++ 2M), and in fewer of Euler's. What counts is what training sees: the
rewards, and the order in which they put the images of a group.

    python benchmarks/finish_steps.py [GROUPS]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from customized_grpo.algorithm import coarse_steps
from customized_grpo.config import load_config
from customized_grpo.critters import samples as critters
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Condition, Policy
from customized_grpo.training.assemble import load_metrics, load_rewards
from customized_grpo.training.rollout import Sampler, denoise, derive_seed

SIZE, WINDOW = 12, (2, 3)
METRICS = 'evaluation.metrics=["oracle_identity", "oracle_prompt", "joint_success"]'


def main(groups: int) -> None:
    print("steps  finish        latents  pixels  | change of the mean / correlation within groups")
    for steps in (10, 25):
        config = load_config("critters", [f"sampling.num_steps={steps}", "window.last=null", METRICS])
        policy = load_policy(config.model, "cpu")
        rewards = load_rewards(config)
        metrics = rewards | load_metrics(config, rewards)
        metrics = {name: metric for name, metric in metrics.items() if not name.endswith("_reward")}
        chosen = critters.draw_samples(groups, critters.DEVELOPMENT_CRITTERS, 1, source="critters")
        members = [sample for sample in chosen for _ in range(SIZE)]
        whole = None
        for name, latents, condition in finished(policy, chosen, config.noise.level, steps):
            images = policy.decode(latents, condition).cpu()
            scores = {key: metric(images, members).double() for key, metric in metrics.items()}
            if whole is None:
                whole = latents, images, scores
            print(row(steps, name, (latents, images, scores), whole), flush=True)


def finished(policy: Policy, chosen, noise_level: float, steps: int) -> Iterator[tuple[str, Tensor, Condition]]:
    """The latents of the same images, finished in several ways, the grid's own steps first."""
    sigmas = policy.sigmas(steps, 3.0)
    sampler = Sampler(sigmas, "flow", noise_level, 64)
    rollout = sampler.rollout(
        policy, policy.encode(chosen), SIZE, WINDOW, lambda group, member: derive_seed("finish", group, member)
    )
    first, rest = WINDOW[-1] + 1, range(WINDOW[-1] + 1, steps)
    start, condition = rollout.trajectory[-1].next_latents, rollout.condition
    with torch.no_grad():
        yield f"{len(rest)} Euler", denoise(policy, start, condition, sigmas, rest), condition
        for count in (count for count in (8, 6, 4, 3, 2, 1) if count < len(rest)):
            yield f"{count} second order", denoise(policy, start, condition, sigmas, rest, count), condition
            coarse = sigmas[list(coarse_steps(first, steps, count))]
            yield f"{count} Euler", denoise(policy, start, condition, coarse, range(count)), condition


def row(steps: int, name: str, this: tuple, whole: tuple) -> str:
    distances = [(a - b).pow(2).mean().sqrt().item() for a, b in zip(this[:2], whole[:2], strict=True)]
    figures = [
        f"{key} {values.mean() - whole[2][key].mean():+.3f} / {within_groups(values, whole[2][key]):.3f}"
        for key, values in this[2].items()
    ]
    return f"{steps:>5}  {name:<15}{distances[0]:>6.3f}  {distances[1]:>6.3f}  | {'  '.join(figures)}"


def within_groups(values: Tensor, others: Tensor) -> float:
    """Correlation of two sets of scores after subtracting each group's mean."""
    centred = [scores.view(-1, SIZE) - scores.view(-1, SIZE).mean(dim=1, keepdim=True) for scores in (values, others)]
    return torch.corrcoef(torch.stack([scores.flatten() for scores in centred]))[0, 1].item()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
