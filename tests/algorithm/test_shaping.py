"""From rewards to advantages: values worked by hand, masks, flat groups, roles. Rules: test_rules.py."""

import math
from functools import partial

import pytest
import torch

from customized_grpo.algorithm import (
    ConstantWeights,
    TimeAwareWeights,
    combine_advantages,
    conflict_diagnostics,
    group_advantages,
    mask_unscored,
    role_advantages,
    sigma_schedule,
    step_advantages,
    step_progress,
    synergy_bonus,
)

NAN = math.nan
near = partial(torch.testing.assert_close, atol=1e-5, rtol=0, equal_nan=True)

# One group with A_prompt = (-1, 0, 1) and A_identity = (1, -1, 0): mean 2, std 1 for both.
CONFLICT = {"prompt": torch.tensor([[1.0, 2, 3]]), "identity": torch.tensor([[3.0, 1, 2]])}
HALF = torch.tensor([0.5])


def test_advantages_match_the_reference(example):
    prompt = group_advantages(example["prompt_rewards"])  # integers, as a VLM judge returns them
    identity = group_advantages(example["identity_rewards"].float())
    near(prompt, example["A_prompt"])
    near(identity, example["A_identity"])
    bonus = synergy_bonus(prompt, identity, 0.4)
    near(bonus, example["bonus_gamma_0.4"])
    combined = combine_advantages({"prompt": prompt, "identity": identity}, {"prompt": 0.7, "identity": 0.3}, bonus)
    near(combined, example["A_at_w_prompt_0.7"])


def test_groups_are_normalised_apart_and_scale_free():
    rewards = torch.tensor([[1.0, 2, 3], [100, 300, 200]])
    near(group_advantages(rewards), torch.tensor([[-1.0, 0, 1], [-1, 1, 0]]))
    near(group_advantages(rewards * 7 + 5), group_advantages(rewards))


@pytest.mark.parametrize(
    "rewards",
    [
        [2.0, 2, 2, 2],
        [0.1] * 12,  # .1 is not a binary fraction: the mean rounds
        [1e6, 1e6 + 0.25, 1e6, 1e6],  # spread .125 < 1e-6 x 1e6
        [3.0],  # a group of one
    ],
)
def test_groups_without_spread_give_zeros(rewards):
    assert group_advantages(torch.tensor([rewards])).tolist() == [[0.0] * len(rewards)]


def test_a_small_spread_still_counts():
    near(group_advantages(torch.tensor([[0.0, 1e-5, 2e-5]])), torch.tensor([[-1.0, 0, 1]]))


def test_unscored_images_stay_nan_and_change_nothing():
    rewards = torch.tensor([[1.0, NAN, 2, 3, NAN], [NAN, NAN, NAN, NAN, 4], [NAN] * 5])
    expected = torch.tensor([[-1.0, NAN, 0, 1, NAN], [NAN, NAN, NAN, NAN, 0], [NAN] * 5])
    near(group_advantages(rewards), expected)


def test_infinite_rewards_are_refused():
    with pytest.raises(ValueError, match="return NaN for an image that could not be scored"):
        group_advantages(torch.tensor([[1.0, math.inf]]))


def test_an_image_that_one_reward_cannot_score_is_masked_for_all(example):
    # The reference group, and a fifth image with an extreme prompt reward but no identity reward.
    rewards = {
        "prompt": torch.tensor([[1.0, 2, 3, 6, 99]]),
        "identity": torch.tensor([[70.0, 80, 60, 90, NAN]]),
    }
    assert mask_unscored(rewards)["prompt"].isnan().tolist() == [[False] * 4 + [True]]
    assert rewards["prompt"][0, 4] == 99  # the input is not changed
    advantages = role_advantages(rewards)
    near(advantages["prompt"][:, :4], example["A_prompt"])
    near(advantages["identity"][:, :4], example["A_identity"])
    final = step_advantages("sars", rewards, torch.tensor([0.7]))
    near(final[:, :4, 0], example["A_at_w_prompt_0.7"])
    assert final[0, 4].isnan().all()


def test_rewards_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="every reward scores the same"):
        mask_unscored({"prompt": torch.zeros(1, 3), "identity": torch.zeros(3, 1)})


def test_bonus_signs():
    prompt = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, NAN])
    identity = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 1.0])
    t = 0.4 * math.tanh(1)  # .304638
    near(synergy_bonus(prompt, identity, 0.4), torch.tensor([t, -t, -t, -t, 0, NAN]))
    with pytest.raises(ValueError, match="gamma is -1"):
        synergy_bonus(prompt, identity, -1)


@pytest.mark.parametrize(("correlation", "mean"), [(-0.5, -0.131), (0.0, -0.083), (0.5, -0.037)])
def test_bonus_is_not_zero_mean_unless_recentred(correlation, mean):
    noise = torch.randn(2, 20_000, 12, generator=torch.Generator().manual_seed(0))
    prompt = noise[0]
    rewards = {"prompt": prompt, "identity": correlation * prompt + (1 - correlation**2) ** 0.5 * noise[1]}
    # Linear advantages have mean 0 in every group, so the overall mean is that of the bonus.
    assert step_advantages("sars", rewards, HALF).mean().item() == pytest.approx(mean, abs=0.004)
    recentred = step_advantages("sars", rewards, HALF, recentre=True)
    assert recentred.mean(dim=1).abs().max() < 1e-5
    assert (recentred - step_advantages("linear", rewards, HALF)).abs().max() > 0.1  # but there is a bonus


def test_combined_advantages_are_clamped_and_keep_nan():
    advantages = {"prompt": torch.tensor([9.0, -9, 1, NAN]), "identity": torch.tensor([9.0, -9, 3, 1])}
    weights = {"prompt": 0.5, "identity": 0.5}
    near(combine_advantages(advantages, weights, 0.25), torch.tensor([5.0, -5, 2.25, NAN]))
    near(combine_advantages(advantages, weights, 0.0, clip=1.5), torch.tensor([1.5, -1.5, 1.5, NAN]))


def test_combining_refuses_different_roles_and_a_clip_of_zero():
    advantages = {"prompt": torch.zeros(2), "identity": torch.zeros(2)}
    with pytest.raises(ValueError, match="the roles must match"):
        combine_advantages(advantages, {"prompt": 1.0}, 0.0)
    with pytest.raises(ValueError, match="clip is 0"):
        combine_advantages(advantages, {"prompt": 1.0, "identity": 0.0}, 0.0, clip=0)


def test_each_trained_step_has_the_weight_of_its_own_true_step(reference):
    steps, sigmas = [23, 4, 10], sigma_schedule(25, 3.0)  # permuted: weights .5, .7, .5
    weight = TimeAwareWeights().prompt_weight(step_progress(steps, sigmas))
    advantages = step_advantages("linear", CONFLICT, weight)
    assert advantages.shape == (1, 3, 3)
    for t, step in enumerate(steps):
        w = reference["tdw_T25_w_prompt"][step]
        # w (-1, 0, 1) + (1 - w) (1, -1, 0)
        near(advantages[0, :, t], torch.tensor([1 - 2 * w, w - 1, w]))


def test_a_weight_of_one_trains_on_one_reward():
    weight = ConstantWeights(1.0).prompt_weight(torch.zeros(1))
    near(step_advantages("linear", CONFLICT, weight)[0, :, 0], torch.tensor([-1.0, 0, 1]))


# Three rewards in two roles: prompt A = (-1, 0, 1), identity "face" A = (1, 0, -1), identity "body" A = (-1, 1, 0).
SHARED = {
    "text": torch.tensor([[0.0, 1, 2]]),
    "face": torch.tensor([[9.0, 8, 7]]),
    "body": torch.tensor([[1.0, 3, 2]]),
}
ROLES = {"text": "prompt", "face": "identity", "body": "identity"}


def test_a_role_shares_its_weight_among_its_rewards():
    # .7 A_text + .15 A_face + .15 A_body, by hand
    found = step_advantages("linear", SHARED, torch.tensor([0.7]), roles=ROLES)[0, :, 0]
    near(found, torch.tensor([-0.7, 0.15, 0.55]))


def test_the_bonus_is_the_mean_over_identity_prompt_pairs():
    sars, linear = (step_advantages(rule, SHARED, HALF, roles=ROLES)[0, :, 0] for rule in ("sars", "linear"))
    # Image 1: text bad, face good: .4 tanh(-1); text bad, body bad: -.4 tanh(1). Image 2: products 0. Image 3:
    # text good, face bad: .4 tanh(-1); text good, body average: 0.
    near(sars - linear, 0.4 * math.tanh(1) * torch.tensor([-1.0, 0, -0.5]))


@pytest.mark.parametrize(("rule", "expected"), [("min", (-1.0, 0, -1)), ("max", (1.0, 1, 1))])
def test_extremes_are_over_all_rewards(rule, expected):
    near(step_advantages(rule, SHARED, HALF, roles=ROLES)[0, :, 0], torch.tensor(expected))


def test_the_advantage_of_a_role_is_the_mean_of_its_rewards():
    found = role_advantages(SHARED, ROLES)
    near(found["identity"], torch.tensor([[0.0, 0.5, -0.5]]))
    assert set(found) == {"prompt", "identity"}


def test_every_quality_reward_needs_its_weight():
    with pytest.raises(ValueError, match=r"quality weights for \[\], quality rewards \['look'\]"):
        step_advantages("sars", SHARED | {"look": SHARED["text"]}, HALF, roles=ROLES | {"look": "quality"})


@pytest.mark.parametrize(
    ("rule", "rewards", "weight", "message"),
    [
        ("mean", CONFLICT, HALF, "shaping rule is 'mean'; use one of sars, linear"),
        ("sars", {"prompt": CONFLICT["prompt"]}, HALF, "set a constant prompt weight of 1 or 0"),
        ("sars", CONFLICT | {"style": CONFLICT["prompt"]}, HALF, "roles .'identity', 'prompt', 'style'"),
        ("sars", CONFLICT, torch.tensor(0.5), r"prompt_weight of shape \(\)"),
        ("sars", {k: v[0] for k, v in CONFLICT.items()}, HALF, r"rewards of shape \(3,\)"),
    ],
)
def test_invalid_requests_are_refused(rule, rewards, weight, message):
    with pytest.raises(ValueError, match=message):
        step_advantages(rule, rewards, weight)


def test_conflict_diagnostics_by_hand(example):
    # A third image without identity score, a second group without spread: neither may change a number.
    prompt = torch.tensor([[1.0, 2, 50, 3, 6], [1, 2, 3, 4, 5]])
    identity = torch.tensor([[70.0, 80, NAN, 60, 90], [7, 7, 7, 7, 7]])
    advantages = role_advantages({"prompt": prompt, "identity": identity})
    found = conflict_diagnostics(advantages["prompt"], advantages["identity"])
    # Signs (- -), (- +), (0 -), (+ +).
    # Deviations (-2, -1, 0, 3) and (-5, 5, -15, 15): correlation 50 / sqrt(14 x 500) = .59761
    assert found == pytest.approx(
        {
            "both_good": 0.25, "conflict": 0.25, "both_bad": 0.5, "conflict_excess": -0.25,
            "correlation": 0.59761, "flat_groups": 1,
        },
        abs=1e-5,
    )  # fmt: skip
    alone = conflict_diagnostics(example["A_prompt"], example["A_identity"])
    assert alone == pytest.approx(found | {"flat_groups": 0}, abs=1e-5)


def test_correlation_is_the_one_within_groups():
    # Prompts differ in level for both rewards together; inside a group the rewards are opposed.
    within = torch.tensor([1.0, 2, 4, 8])
    level = torch.arange(6.0)[:, None] * 100
    advantages = role_advantages({"prompt": level + within, "identity": level - within})
    found = conflict_diagnostics(advantages["prompt"], advantages["identity"])
    assert found["correlation"] == pytest.approx(-1, abs=1e-6)
    assert found["conflict"] == 1


def test_independent_rewards_show_no_excess_conflict():
    prompt, identity = torch.randn(2, 5000, 12, generator=torch.Generator().manual_seed(0))
    found = conflict_diagnostics(group_advantages(prompt), group_advantages(identity))
    assert abs(found["conflict_excess"]) < 0.01
    assert abs(found["correlation"]) < 0.01


def test_diagnostics_without_scored_groups_are_nan():
    found = conflict_diagnostics(torch.zeros(2, 4), torch.full((2, 4), NAN))
    assert found.pop("flat_groups") == 2
    assert all(math.isnan(value) for value in found.values())
    with pytest.raises(ValueError, match="both must be"):
        conflict_diagnostics(torch.zeros(2, 4), torch.zeros(2, 3))
