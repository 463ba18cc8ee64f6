"""A probe on models with known answers, and on the built-in model with few steps."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from customized_grpo.algorithm import Dynamics, sigma_schedule, step_distribution
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.measure.probe_findings import Findings
from customized_grpo.measure.probe_steps import Probe, Profile, spread_within
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.rewards.scoring import RewardError
from customized_grpo.training.rollout import Sampler

STEPS, DIMENSIONS = 6, 3
SIGMAS = sigma_schedule(STEPS, 3.0)
FEW = sigma_schedule(4, 3.0)
TINY = Path(__file__).parents[1] / "tiny.yaml"


# --- models with known answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """An empty condition that only knows which entries of the batch these are."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def repeat(self, count: int) -> "Places":
        return Places(self.index.repeat_interleave(count))

    def __getitem__(self, part: slice | Tensor) -> "Places":
        return Places(self.index[part])


class Linear:
    """Latents [B, 3] that decode to themselves; velocity(x, step) is given, plus a trainable shift of zero."""

    def __init__(self, velocity: Callable[[Tensor, int], Tensor]):
        self.field, self.shift = velocity, nn.Parameter(torch.zeros(DIMENSIONS))
        self.module, self.device, self.calls = nn.Module(), torch.device("cpu"), []

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        return sigma_schedule(num_steps, float(shift))

    def encode(self, samples: Sequence[Sample]) -> Places:
        return Places(torch.arange(len(samples)))

    def noise(self, condition: Any, seeds: Sequence[int]) -> Tensor:  # noqa: ARG002
        return torch.stack([torch.randn(DIMENSIONS, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: Any) -> Tensor:
        assert len(latents) == len(condition)
        step = int((SIGMAS - torch.as_tensor(sigma)).abs().argmin())
        self.calls.append((step, len(latents)))
        return self.field(latents, step) + self.shift

    def decode(self, latents: Tensor, condition: Any) -> Tensor:  # noqa: ARG002
        return latents

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {"shift": self.shift}

    @contextmanager
    def base_policy(self) -> Iterator[None]:
        yield

    def save_adapter(self, directory: Path) -> None:
        raise NotImplementedError

    def load_adapter(self, path: Path) -> None:
        raise NotImplementedError


def coordinate(index: int, scale: float = 1.0) -> Callable[[Tensor, Sequence[Sample]], Tensor]:
    return lambda images, samples: images[:, index] / scale  # noqa: ARG005


def probe_of(
    policy: Any,
    samples: Sequence[Sample],
    metrics: Any,
    *,
    draws: int = 4,
    dynamics: Dynamics = "dance",
    batch: int = 7,
    sigmas: Tensor = SIGMAS,
) -> Probe:
    return Probe(policy, Sampler(sigmas, dynamics, 0.4, batch), samples, metrics, draws, seed=0)


def drawn(probe: Probe, step: int) -> Tensor:
    """The standard normal numbers [P, G, 3] that a probe draws at a step."""
    seeds = [[probe.seed_of(sample, step, draw) for draw in range(probe.draws)] for sample in probe.samples]
    return torch.stack(
        [torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in row]) for row in seeds]
    )


@pytest.mark.parametrize("dynamics", ["dance", "flow", "cps"])
def test_the_spread_is_a_steps_noise_times_the_gain_of_the_later_steps(dynamics: Dynamics, samples: list[Sample]):
    """v = -x / 2, so that a deterministic step multiplies by 1 + (sigma - sigma') / 2; the reward is a coordinate."""
    probe = probe_of(Linear(lambda x, _: -x / 2), samples[:5], {"first": coordinate(0)}, dynamics=dynamics)
    spreads = probe.measure().spreads["first"]
    assert spreads.shape == (STEPS - 1, 5)
    for step in range(STEPS - 1):
        x = torch.zeros(1, 1)
        _, std = step_distribution(dynamics, x, x, SIGMAS[step], SIGMAS[step + 1], 0.4, SIGMAS[1])
        gain = torch.prod(1 + (SIGMAS[step + 1 : -1] - SIGMAS[step + 2 :]) / 2)
        expected = std * gain * drawn(probe, step)[..., 0].double().std(dim=1)
        torch.testing.assert_close(spreads[step], expected, rtol=1e-4, atol=1e-6)


def erased_at(step: int, then_kept: bool = True) -> Callable[[Tensor, int], Tensor]:
    """Coordinate 0 becomes 0 at `step`; at the step after it, coordinate 1 becomes 10,000 times coordinate 0."""

    def velocity(x: Tensor, now: int) -> Tensor:
        dt = (SIGMAS[now + 1] - SIGMAS[now]).item()
        v = torch.zeros_like(x)
        if now == step:
            v[:, 0] = -x[:, 0] / dt
        if now == step + 1 and then_kept:
            v[:, 1] = (1e4 * x[:, 0] - x[:, 1]) / dt
        return v

    return velocity


def test_only_the_step_that_decides_a_reward_spreads_it(samples: list[Sample]):
    """Noise before step 2 is erased there, and noise after it comes too late: step 3 stores the value."""
    probe = probe_of(Linear(erased_at(2)), samples[:6], {"kept": coordinate(1, 1e4)}, draws=5)
    spreads = probe.measure().spreads["kept"]
    assert spreads[2].min() > 0.01
    for step in (0, 1, 3, 4):
        assert spreads[step].max() < 1e-3 * spreads[2].min()


def test_a_reward_that_ignores_the_picture_has_no_spread(samples: list[Sample]):
    reward = lambda images, owners: torch.tensor([float(sample.id[-2:]) for sample in owners])  # noqa: E731, ARG005
    spreads = probe_of(Linear(lambda x, _: x), samples[:4], {"name": reward}).measure().spreads["name"]
    assert torch.equal(spreads, torch.zeros(STEPS - 1, 4).double())


@pytest.mark.parametrize("dynamics", ["dance", "flow", "cps"])
def test_gradient_norms_are_factor_times_noise(dynamics: Dynamics, samples: list[Sample], make_config: Any):
    """v = shift: d log_prob / d shift = (b / std) noise / D, b / std being the gradient factor and D = 3."""
    probe = probe_of(Linear(lambda x, _: 0 * x), samples[:10], {"first": coordinate(0)}, dynamics=dynamics)
    profile = probe.measure()
    config = make_config(f"noise.dynamics={dynamics}", "noise.level=.4", f"sampling.num_steps={STEPS}")
    figures = {"identity_reward": profile.spreads["first"], "prompt_reward": profile.spreads["first"]}
    findings = Findings.of(config, samples[:10], SIGMAS, Profile(figures, profile.gradient_norms))
    assert profile.gradient_norms.shape == (STEPS - 1, 8)
    for step, factor in enumerate(findings.gradient_factors):
        expected = factor * drawn(probe, step)[:8, 0].double().norm(dim=1) / DIMENSIONS
        torch.testing.assert_close(profile.gradient_norms[step], expected, rtol=1e-4, atol=1e-7)


def test_the_prefix_is_shared_and_draws_start_at_their_noise(samples: list[Sample]):
    """P prompts, G draws. Per step: a pass for the noise, one for the prefix, M of single images for the gradient."""
    policy = Linear(lambda x, _: x)
    probe_of(policy, samples[:3], {"first": coordinate(0)}, draws=4, batch=64).measure()
    expected = []
    for step in range(STEPS - 1):
        later = [(after, 3 * 4) for after in range(step + 1, STEPS)]
        expected += [(step, 3), *later, *[(step, 1)] * 3, (step, 3)]
    assert policy.calls == expected


def test_every_image_has_its_own_seed(samples: list[Sample]):
    probe = probe_of(Linear(lambda x, _: x), samples[:3], {})
    images = [(sample, step, draw) for sample in probe.samples for step in range(5) for draw in range(4)]
    assert len({probe.seed_of(*image) for image in images} | {probe.seed_of(sample) for sample in probe.samples}) == 63


# --- the built-in model ----------------------------------------------------------------------------------------------


def test_draws_are_those_of_the_training_sampler(built_in: FluxKontextPolicy, samples: list[Sample]):
    seen = []

    def keep(images: Tensor, _: Sequence[Sample]) -> Tensor:
        seen.append(images)
        return images.mean(dim=(1, 2, 3))

    probe = probe_of(built_in, samples[:2], {"kept": keep}, draws=3, dynamics="flow", batch=64, sigmas=FEW)
    probe.measure()
    condition = built_in.encode(samples[:2])
    for step, images in enumerate(seen):

        def seed_of(group: int, member: int | None, step: int = step) -> int:
            sample = samples[group]
            return probe.seed_of(sample) if member is None else probe.seed_of(sample, step, member)

        rollout = probe.sampler.rollout(built_in, condition, 3, (step,), seed_of)
        torch.testing.assert_close(images, rollout.images, atol=1e-4, rtol=0)
    assert len(seen) == 3


def test_results_do_not_depend_on_the_batch(built_in: FluxKontextPolicy, samples: list[Sample]):
    """Six images in batches of one and of four, with a remainder of two."""

    def contrast(images: Tensor, owners: Sequence[Sample]) -> Tensor:
        assert len(images) == len(owners)
        return images.std(dim=(1, 2, 3))

    whole, *parts = (
        probe_of(
            built_in, samples[:3], {"contrast": contrast}, draws=2, dynamics="flow", batch=size, sigmas=FEW
        ).measure()
        for size in (64, 4, 1)
    )
    for profile in parts:
        torch.testing.assert_close(profile.spreads["contrast"], whole.spreads["contrast"], atol=1e-5, rtol=0)
        torch.testing.assert_close(profile.gradient_norms, whole.gradient_norms, rtol=1e-3, atol=0)


def test_a_probe_leaves_no_gradient_behind(built_in: FluxKontextPolicy, samples: list[Sample]):
    metrics = {"mean": lambda images, _: images.mean(dim=(1, 2, 3))}
    profile = probe_of(built_in, samples[:2], metrics, draws=2, sigmas=FEW).measure()
    assert (profile.gradient_norms > 0).all()
    assert all(weight.grad is None for weight in built_in.trainable_parameters().values())


def test_spread_within_a_prompt_by_hand():
    """(1, 2, 3): mean 2, squares 1 + 0 + 1 over 2. (0, nan, 4): mean 2, squares 4 + 4 over 1."""
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, nan, 4.0], [5.0, 5.0, 5.0], [nan, nan, 7.0]])
    expected = torch.tensor([1.0, 8**0.5, 0.0, nan]).double()
    torch.testing.assert_close(spread_within(scores), expected, equal_nan=True)


def test_a_reward_that_cannot_score_stops_the_probe_at_the_first_step(samples: list[Sample]):
    policy = Linear(lambda x, _: x)
    metrics = {"identity_reward": coordinate(0), "prompt_reward": lambda x, _: x[:, 0] * nan}
    with pytest.raises(UsageError, match="the prompt reward cannot score these samples; choose another reward"):
        probe_of(policy, samples[:3], metrics, batch=64).measure()
    assert [step for step, _ in policy.calls] == list(range(STEPS))


def test_a_reward_that_breaks_its_contract_is_reported(samples: list[Sample]):
    with pytest.raises(RewardError, match=r"reward 'mine' returned shape \(12, 3\) for 12 images; return \[N\]"):
        probe_of(Linear(lambda x, _: x), samples[:3], {"mine": lambda images, _: images}, batch=64).measure()
