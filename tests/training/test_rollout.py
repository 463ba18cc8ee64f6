from collections.abc import Callable, Sequence
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from customized_grpo.algorithm import Dynamics, sigma_schedule, step_distribution
from customized_grpo.data import Sample
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.rollout import Point, Rollout, Sampler, denoise, derive_seed, generate

STEPS, GROUPS, SIZE = 5, 2, 3
SIGMAS = sigma_schedule(STEPS, 3.0)


def seed_of(group: int, member: int | None) -> int:
    return derive_seed("test", group, member)


@pytest.fixture
def policy(make_policy: Callable[..., FluxKontextPolicy]) -> FluxKontextPolicy:
    return make_policy()


def roll(
    policy: FluxKontextPolicy,
    samples: Sequence[Sample],
    steps: Sequence[int],
    *,
    batch: int = 64,
    dynamics: Dynamics = "flow",
    seeds: Callable[[int, int | None], int] = seed_of,
) -> Rollout:
    sampler = Sampler(SIGMAS, dynamics, 0.8, batch)
    return sampler.rollout(policy, policy.encode(samples[:GROUPS]), SIZE, steps, seeds)


def member_by_member(policy: FluxKontextPolicy, samples: Sequence[Sample], steps: Sequence[int]) -> list[list[Tensor]]:
    """Every image sampled alone with "flow" noise: its picture, then its latents before and after each step."""
    results = []
    for group in range(GROUPS):
        condition = policy.encode([samples[group]])
        for member in range(SIZE):
            generator = torch.Generator().manual_seed(seed_of(group, member))
            x = policy.noise(condition, [seed_of(group, None)])
            passed = [x]
            for step in range(STEPS):
                now, then = SIGMAS[step], SIGMAS[step + 1]
                with torch.no_grad():
                    v = policy.velocity(x, now, condition)
                if step in steps:
                    mean, std = step_distribution("flow", x, v, now, then, 0.8, SIGMAS[1])
                    x = mean + std * torch.randn(x.shape[1:], generator=generator)
                else:
                    x = x + (then - now) * v
                passed.append(x)
            results.append([policy.decode(x, condition), *passed])
    return results


@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (2, 3), (1, 3), (3,)])
def test_members_of_a_batch_with_a_shared_prefix_equal_members_sampled_alone(
    steps: tuple[int, ...], policy: FluxKontextPolicy, samples: list[Sample]
):
    expected = member_by_member(policy, samples, steps)
    rollout = roll(policy, samples, steps)
    assert [point.step for point in rollout.trajectory] == list(steps)
    for image, (picture, *passed) in enumerate(expected):
        torch.testing.assert_close(rollout.images[image], picture[0], atol=1e-5, rtol=0)
        for point in rollout.trajectory:
            torch.testing.assert_close(point.latents[image], passed[point.step][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(point.next_latents[image], passed[point.step + 1][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 4, 5])  # 6 images: remainders of 0, 2 and 1
def test_a_rollout_does_not_depend_on_the_batch_size(batch: int, policy: FluxKontextPolicy, samples: list[Sample]):
    whole, parts = roll(policy, samples, (1, 2)), roll(policy, samples, (1, 2), batch=batch)
    assert parts.images.shape == (GROUPS * SIZE, 3, 32, 32)
    # Kernels round differently by batch size, and later steps amplify it.
    torch.testing.assert_close(parts.images, whole.images, atol=5e-5, rtol=0)
    for one, other in zip(parts.trajectory, whole.trajectory, strict=True):
        for name in ("latents", "next_latents", "log_prob"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=0)


def test_the_prefix_is_computed_once_per_group(
    policy: FluxKontextPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    seen, velocity = [], policy.velocity

    def counting(latents: Tensor, sigma: float | Tensor, condition: object) -> Tensor:
        seen.append(len(latents))
        return velocity(latents, sigma, condition)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(policy, "velocity", counting)
    roll(policy, samples, (2, 3))
    assert seen == [GROUPS] * 2 + [GROUPS * SIZE] * (STEPS - 2)


def test_members_share_only_the_initial_noise(policy: FluxKontextPolicy, samples: list[Sample]):
    (first,) = roll(policy, samples, (0,)).trajectory
    starts, ends = (x.reshape(GROUPS, SIZE, -1) for x in (first.latents, first.next_latents))
    assert torch.equal(starts, starts[:, :1].expand_as(starts))
    assert not torch.equal(starts[0], starts[1])
    flat = ends.reshape(GROUPS * SIZE, -1)
    distances = torch.cdist(flat, flat) + torch.eye(len(flat)) * 1e9
    assert distances.min() > 1


def test_points_hold_what_is_needed_to_replay_them(policy: FluxKontextPolicy, samples: list[Sample]):
    """True step and sigmas, consecutive latents, and the mean log-density of the full Gaussian."""
    rollout = roll(policy, samples, (1, 2))
    first, second = rollout.trajectory
    assert (first.step, second.step) == (1, 2)
    for point in (first, second):
        assert (point.sigma, point.sigma_next) == (SIGMAS[point.step].item(), SIGMAS[point.step + 1].item())
        with torch.no_grad():
            v = policy.velocity(point.latents, point.sigma, rollout.condition)  # pyright: ignore[reportArgumentType]
        mean, std = step_distribution("flow", point.latents, v, point.sigma, point.sigma_next, 0.8, SIGMAS[1])
        density = Normal(mean, std).log_prob(point.next_latents).flatten(1).mean(1)
        torch.testing.assert_close(point.log_prob, density, atol=1e-5, rtol=0)
    assert torch.equal(first.next_latents, second.latents)
    with torch.no_grad():
        end = denoise(policy, second.next_latents, rollout.condition, SIGMAS, range(3, STEPS))
    assert torch.equal(policy.decode(end, rollout.condition), rollout.images)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dynamics", ["dance", "cps"])
def test_every_dynamics_has_its_own_noise(dynamics: Dynamics, policy: FluxKontextPolicy, samples: list[Sample]):
    (other,), (flow,) = (roll(policy, samples, (1,), dynamics=d).trajectory for d in (dynamics, "flow"))
    assert torch.equal(other.latents, flow.latents)
    assert not torch.equal(other.next_latents, flow.next_latents)


def test_only_trained_points_are_stored(policy: FluxKontextPolicy, samples: list[Sample]):
    rollout = roll(policy, samples, (2,))
    assert len(rollout.trajectory) == 1
    tensors = [f.name for f in fields(Point) if isinstance(getattr(rollout.trajectory[0], f.name), Tensor)]
    assert tensors == ["latents", "next_latents", "log_prob"]
    assert all(not getattr(rollout.trajectory[0], name).requires_grad for name in tensors)


def test_an_image_depends_only_on_its_own_seeds(policy: FluxKontextPolicy, samples: list[Sample]):
    """A different seed for a member changes only that member; a different initial noise changes only its group."""
    before = roll(policy, samples, (1,)).images

    def changed(group: int, member: int | None) -> list[bool]:
        seeds = lambda g, m: derive_seed("other") if (g, m) == (group, member) else seed_of(g, m)  # noqa: E731
        after = roll(policy, samples, (1,), seeds=seeds).images
        return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]

    assert changed(0, 1) == [False, True, False, False, False, False]
    assert changed(1, None) == [False, False, False, True, True, True]


def test_generating_is_a_rollout_without_noise(policy: FluxKontextPolicy, samples: list[Sample]):
    sampler = Sampler(SIGMAS, "flow", 1e-6, 64)
    condition = policy.encode(samples[:GROUPS])
    rollout = sampler.rollout(policy, condition, 1, (2,), seed_of)
    images = generate(policy, condition, SIGMAS, [seed_of(0, None), seed_of(1, None)])
    torch.testing.assert_close(rollout.images, images, atol=1e-4, rtol=0)


def test_seeds_depend_on_all_their_parts():
    assert derive_seed(0, 1, "a", None) == derive_seed(0, 1, "a", None)
    seeds = {derive_seed(*parts) for parts in [(0, 1), (1, 0), (0, 1, None), ("0", "1x"), (0, 11), (0, 1, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)  # what a torch generator takes


def test_fewer_steps_after_the_window_leave_the_trained_transitions_as_they_are(
    policy: FluxKontextPolicy, samples: list[Sample]
):
    """The picture is finished in one step: sigma v below the latents after the window."""
    condition, steps = policy.encode(samples[:GROUPS]), (0, 1)
    whole = Sampler(SIGMAS, "flow", 0.8, 64).rollout(policy, condition, SIZE, steps, seed_of)
    quick = Sampler(SIGMAS, "flow", 0.8, 64, finish_steps=1).rollout(policy, condition, SIZE, steps, seed_of)
    for one, other in zip(whole.trajectory, quick.trajectory, strict=True):
        assert torch.equal(one.next_latents, other.next_latents)
        assert torch.equal(one.log_prob, other.log_prob)
    last, sigma, members = quick.trajectory[-1].next_latents, SIGMAS[2].item(), condition.repeat(SIZE)
    with torch.no_grad():
        clean = last - sigma * policy.velocity(last, sigma, members)
    torch.testing.assert_close(quick.images, policy.decode(clean, members), atol=1e-4, rtol=0)
    assert not torch.equal(quick.images, whole.images)
