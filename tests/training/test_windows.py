"""Steps that are scattered at random, for each image or for each update, with noise there or everywhere."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import sigma_schedule, step_distribution
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.rewards import Reward
from customized_grpo.training.advice import notices
from customized_grpo.training.plan import Plan
from customized_grpo.training.rollout import Rollout, Sampler, derive_seed
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.windows import DrawnSteps

MakePlan = Callable[..., Plan]
SCATTERED = ("sampling.num_steps=10", "window={strategy: scattered, size: 3, first: 1, last: 7}")
PUBLISHED = ("sampling.num_steps=25", "window={strategy: scattered, size: 14}", "noise.steps=all")


@pytest.fixture
def plan_of(make_config: Callable[..., RunConfig], samples: list[Sample]) -> MakePlan:
    def make(*overrides: str) -> Plan:
        config = make_config(*overrides)
        return Plan(config, samples, sigma_schedule(config.sampling.num_steps, float(config.sampling.shift)))

    return make


def steps_of(plan: Plan, update: int) -> list[tuple[int, ...]]:
    """The steps that each image of an update trains."""
    trained = plan.trained(update)
    assert trained is not None
    return [tuple(s for s, own in zip(plan.window(update), row, strict=True) if own) for row in trained.tolist()]


# --- which steps -----------------------------------------------------------------------------------------------------


def test_drawn_steps_by_hand():
    drawn = DrawnSteps(torch.tensor([[5, 1], [1, 2]]))
    assert drawn.steps == (1, 2, 5)
    assert drawn.trained.tolist() == [[True, False, True], [True, True, False]]
    values = drawn.by_step(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    torch.testing.assert_close(
        values, torch.tensor([[20, math.nan, 10], [30, 40, math.nan]]), equal_nan=True, atol=0, rtol=0
    )


def test_every_image_draws_its_own_steps(plan_of: MakePlan):
    plan = plan_of(*SCATTERED, "groups.size=8")
    counts = Counter[int]()
    for update in range(60):
        images = steps_of(plan, update)
        assert len(images) == 16
        assert all(len(set(steps)) == 3 for steps in images)
        assert len(set(images)) > 5
        assert plan.window(update) == tuple(sorted({step for steps in images for step in steps}))
        counts.update(step for steps in images for step in steps)
    # 2,880 draws of seven steps: 411 each, with a standard deviation below 19.
    assert counts.keys() == set(range(1, 8))
    assert all(abs(count - 411) < 80 for count in counts.values()), counts


def test_the_steps_of_an_image_depend_on_sample_epoch_and_member_alone(plan_of: MakePlan):
    wide, narrow = plan_of(*SCATTERED, "groups.prompts=4"), plan_of(*SCATTERED, "groups.prompts=2")
    assert wide.batch(1)[2] == narrow.batch(3)[0]
    assert steps_of(wide, 1)[6:9] == steps_of(narrow, 3)[:3]
    assert steps_of(plan_of(*SCATTERED, "groups.prompts=4"), 1) == steps_of(wide, 1)
    assert steps_of(plan_of(*SCATTERED, "groups.prompts=4", "seed=1"), 1) != steps_of(wide, 1)
    epoch = 12 // 4
    assert steps_of(wide, 1) != steps_of(wide, 1 + epoch)


def test_steps_for_an_update_are_shared_by_its_images(plan_of: MakePlan):
    plan = plan_of(*SCATTERED, "window.per=update")
    windows = [plan.window(update) for update in range(40)]
    assert all(plan.trained(update) is None for update in range(40))
    assert all(len(set(window)) == 3 and tuple(sorted(window)) == window for window in windows)
    assert any(window[2] - window[0] > 2 for window in windows)  # not consecutive
    assert {step for window in windows for step in window} == set(range(1, 8))


def test_advantages_of_steps_that_an_image_does_not_train_are_masked(plan_of: MakePlan):
    plan = plan_of(*SCATTERED)
    window, trained = plan.window(0), plan.trained(0)
    assert trained is not None
    values = torch.arange(float(6 * len(window))).view(2, 3, -1)
    found = plan.at_trained_steps(0, values)
    assert torch.equal(~found.isnan(), trained)
    assert torch.equal(found[trained], values.flatten(0, 1)[trained])
    torch.testing.assert_close(plan.column_weight(window), plan.prompt_weight(window))


# --- weights by position: what the authors' release does -------------------------------------------------------------


def test_by_position_the_mean_prompt_weight_is_the_same_at_every_step(plan_of: MakePlan):
    """The published table at u = j / 25, j = 0 to 13: six times .7, then .684 to .333; mean .599.

    A step's weight deviates by .14; over 24 images x 70 updates x 14/24 the mean has a standard error of .0045.
    """
    plan = plan_of(*PUBLISHED, "weighting.progress=position", "groups.size=12")
    weights = plan.column_weight(plan.window(0))
    assert weights[:7].tolist() == pytest.approx([0.7] * 6 + [0.68433], abs=1e-5)
    assert weights.mean().item() == pytest.approx(0.599, abs=5e-4)
    sums, counts = torch.zeros(24, dtype=torch.float64), torch.zeros(24)
    for update in range(70):
        found = plan.at_trained_steps(update, weights.expand(2, 12, 14))
        at = list(plan.window(update))
        sums[at] += found.nansum(dim=0)
        counts[at] += (~found.isnan()).sum(dim=0)
        assert found.nanmean(dim=1).tolist() == pytest.approx([weights.mean().item()] * 24)  # each image has them all
    means = sums / counts
    assert (means - 0.599).abs().max() < 0.02, means
    assert plan.prompt_weight(range(24)).tolist() == pytest.approx([0.59888] * 24, abs=1e-4)
    true = plan_of(*PUBLISHED).prompt_weight(range(24))
    assert (true.min() < 0.301, true.max() > 0.69) == (True, True)  # by step it is a schedule


def test_by_position_an_image_takes_the_weights_in_the_order_of_its_draw(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    """Prompt scores 0 1 2 and identity scores 5 5 8 give advantages -1 0 1 and -.577 -.577 1.155."""
    trainer = make_trainer(
        *("sampling.num_steps=10", "window={strategy: scattered, size: 5}", "groups.prompts=1"),
        *("weighting.progress=position", "shaping.rule=linear"),
    )
    trainer.rewards.update({"prompt": scoring([0.0, 1.0, 2.0]), "identity": scoring([5.0, 5.0, 8.0])})
    seen, optimise = [], trainer.learner.optimise
    monkeypatch.setattr(trainer.learner, "optimise", lambda *args: seen.append(args) or optimise(*args))
    row = trainer.step()
    ((_, rollout, advantages, *_),) = seen
    drawn = trainer.plan._drawn(0)
    assert drawn is not None
    columns = {point.step: column for column, point in enumerate(rollout.trajectory)}
    for image, (prompt, identity) in enumerate(zip([-1, 0, 1], [-(3**-0.5), -(3**-0.5), 2 * 3**-0.5], strict=True)):
        assert (~advantages[image].isnan()).sum() == 5
        for position, step in enumerate(drawn.orders[image].tolist()):
            u = position / 10
            weight = 0.7 if u < 0.24 else 0.3 + 0.4 / (1 + math.exp(20 * (u - 0.4)))
            expected = weight * prompt + (1 - weight) * identity
            assert advantages[image, columns[step]].item() == pytest.approx(expected, abs=1e-5)
    mean = (3 * 0.7 + 0.3 + 0.4 / (1 + math.exp(-2)) + 0.5) / 5
    assert [entry["prompt_weight"] for entry in row["steps"]] == pytest.approx([mean] * len(columns))


def scoring(values: list[float]) -> Reward:
    return lambda images, samples: torch.tensor(values)  # noqa: ARG005


def test_a_run_is_told_what_weights_by_position_amount_to(plan_of: MakePlan):
    (notice,) = notices(plan_of(*PUBLISHED, "weighting.progress=position"))
    assert "It is 0.60 on average at every step, and between 0.33 and 0.70 at random" in notice


# --- rollouts --------------------------------------------------------------------------------------------------------

GRID, GROUPS, SIZE = sigma_schedule(6, 3.0), 2, 3
STEPS = (0, 2, 3)
TRAINED = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)


def seed_of(group: int, member: int | None) -> int:
    return derive_seed("test", group, member)


def roll(
    policy: FluxKontextPolicy,
    samples: Sequence[Sample],
    trained: Tensor | None = TRAINED,
    steps: Sequence[int] = STEPS,
    *,
    everywhere: bool = False,
    batch: int = 64,
) -> Rollout:
    sampler = Sampler(GRID, "flow", 0.8, batch, noise_everywhere=everywhere)
    return sampler.rollout(policy, policy.encode(samples[:GROUPS]), SIZE, steps, seed_of, trained=trained)


def alone(
    policy: FluxKontextPolicy, samples: Sequence[Sample], image: int, noisy: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """One image sampled by itself, with noise at these steps: its picture, and its latents before and after each."""
    group, member = divmod(image, SIZE)
    condition, generator = policy.encode([samples[group]]), torch.Generator().manual_seed(seed_of(group, member))
    passed = [policy.noise(condition, [seed_of(group, None)])]
    for step in range(6):
        x, now, then = passed[-1], GRID[step], GRID[step + 1]
        with torch.no_grad():
            v = policy.velocity(x, now, condition)
        mean, std = step_distribution("flow", x, v, now, then, 0.8, GRID[1])
        noise = torch.randn(x.shape[1:], generator=generator) if step in noisy else None
        passed.append(x + (then - now) * v if noise is None else mean + std * noise)
    return policy.decode(passed[-1], condition)[0], passed


@pytest.fixture
def policy(make_policy: Callable[..., FluxKontextPolicy]) -> FluxKontextPolicy:
    return make_policy()


@pytest.mark.parametrize("batch", [64, 4])
@pytest.mark.parametrize("everywhere", [False, True])
def test_images_of_a_batch_equal_images_sampled_by_hand(
    everywhere: bool, batch: int, policy: FluxKontextPolicy, samples: list[Sample]
):
    """Each takes noise at its own steps, or at all but the last, and ODE steps elsewhere."""
    rollout = roll(policy, samples, everywhere=everywhere, batch=batch)
    assert [point.step for point in rollout.trajectory] == list(STEPS)
    for image, trained in enumerate(TRAINED):
        noisy = range(5) if everywhere else [step for step, own in zip(STEPS, trained, strict=True) if own]
        picture, passed = alone(policy, samples, image, noisy)
        torch.testing.assert_close(rollout.images[image], picture, atol=5e-5, rtol=0)
        for point in rollout.trajectory:
            torch.testing.assert_close(point.latents[image], passed[point.step][0], atol=5e-5, rtol=0)
            torch.testing.assert_close(point.next_latents[image], passed[point.step + 1][0], atol=5e-5, rtol=0)


def test_with_noise_everywhere_pictures_do_not_depend_on_what_is_trained(
    policy: FluxKontextPolicy, samples: list[Sample]
):
    pictures = roll(policy, samples, everywhere=True).images
    assert torch.equal(roll(policy, samples, ~TRAINED, everywhere=True).images, pictures)
    assert torch.equal(roll(policy, samples, None, (4,), everywhere=True).images, pictures)
    assert not torch.equal(roll(policy, samples).images, pictures)


def test_an_image_does_not_depend_on_the_steps_of_others(policy: FluxKontextPolicy, samples: list[Sample]):
    changed = TRAINED.clone()
    changed[2] = ~changed[2] | torch.tensor([False, True, False])
    same = [torch.equal(*pair) for pair in zip(roll(policy, samples).images, roll(policy, samples, changed).images)]  # noqa: B905
    assert same == [True, True, False, True, True, True]


def test_steps_with_and_without_noise_share_one_forward_pass(
    policy: FluxKontextPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    seen, velocity = [], policy.velocity
    monkeypatch.setattr(policy, "velocity", lambda x, *more: seen.append(len(x)) or velocity(x, *more))
    roll(policy, samples)
    assert seen == [6] * 6
    seen.clear()
    roll(policy, samples, TRAINED[:, 1:], (2, 3))  # the steps before the first noise: once per group
    assert seen == [2, 2, 6, 6, 6, 6]


def test_replayed_log_probabilities_are_the_stored_ones_where_an_image_took_noise(
    policy: FluxKontextPolicy, samples: list[Sample]
):
    sampler = Sampler(GRID, "flow", 0.8, 64)
    rollout = roll(policy, samples)
    for point, trained in zip(rollout.trajectory, TRAINED.unbind(dim=1), strict=True):
        assert point.noisy is not None
        assert torch.equal(point.noisy, trained)
    assert sampler.worst_changes(policy, rollout, torch.arange(6)).max() < 1e-5
    first = rollout.trajectory[0]
    first.log_prob[1] += 1  # took no noise at step 0: means nothing
    assert sampler.worst_changes(policy, rollout, torch.arange(6)).max() < 1e-5
    first.log_prob[2] += 1
    assert sampler.worst_changes(policy, rollout, torch.arange(6)).tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert sampler.worst_changes(policy, rollout, torch.tensor([1]))[0] == 0


@pytest.mark.parametrize("noise", ["trained", "all"])
@pytest.mark.parametrize("per", ["image", "update"])
def test_a_run_with_scattered_steps_starts_at_ratio_one(noise: str, per: str, make_trainer: Callable[..., Trainer]):
    trainer = make_trainer(*SCATTERED, f"window.per={per}", f"noise.steps={noise}", "groups.update_batch=2")
    for update in range(2):
        row = trainer.step()
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert row["gradient_norm"] > 0
        assert [entry["step"] for entry in row["steps"]] == list(trainer.plan.window(update))
    assert trainer.ratio_checks == 2
