"""Every shaping rule: values worked by hand, and what all rules have in common."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import (
    OWN,
    SHAPING_RULES,
    Calibration,
    group_advantages,
    group_spread,
    own_quantity,
    step_advantages,
    synergy_bonus,
)

NAN = float("nan")
near = partial(torch.testing.assert_close, atol=1e-5, rtol=0, equal_nan=True)

# One group with A_prompt = (-1, 0, 1) and A_identity = (1, -1, 0): mean 2, std 1 for both.
CONFLICT = {"prompt": torch.tensor([[1.0, 2, 3]]), "identity": torch.tensor([[3.0, 1, 2]])}
HALF = torch.tensor([0.5])
# Qualities of CONFLICT: prompt .25, .5, .75; identity 1 (2 without the cap), 0, 1.
CALIBRATIONS = {"prompt": Calibration(0, 4), "identity": Calibration(1, 2, capped=True)}


def shaped(rule: str, rewards: dict[str, Tensor], weight: Tensor, **settings: Any) -> Tensor:
    """`step_advantages`, with a calibration for every reward."""
    roles = settings.get("roles", {name: name for name in rewards})
    calibrations = {name: CALIBRATIONS[role] for name, role in roles.items() if role != "quality"}
    return step_advantages(rule, rewards, weight, calibrations=calibrations, **settings)


# softplus of -1, 0, 1 is .313262, .693147, 1.313262; the images of CONFLICT pair (-1, 1), (0, -1), (1, 0).
# harmonic   2ab/(a+b): .505858, .431508, .907376; mean .614914, std .255993
# geometric  sqrt(ab):  .641401, .465980, .954088; mean .687156, std .247250
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("linear", [0.0, -0.5, 0.5]),
        # products -1, 0, 0: only the first image has a bonus, -.4 tanh(1) = -.304638
        ("sars", [-0.304638, -0.5, 0.5]),
        ("raw_sum", [0.0, -1.0, 1.0]),  # sums 2, 1.5, 2.5; std .5
        ("gdpo", [0.0, -1.0, 1.0]),  # (0, -.5, .5) over a batch of one group
        ("min", [-1.0, -1.0, 0.0]),
        ("max", [1.0, 0.0, 1.0]),
        ("harmonic", [-0.42601, -0.71645, 1.14246]),
        ("geometric", [-0.18506, -0.89454, 1.07960]),
        # products .25, 0, .75: mean 1/3, std .381881, z -.218218, -.872872, 1.091089; half of it, half of linear
        ("joint", [-0.109109, -0.686436, 0.795545]),
        # prompt .25, .5, .75 less 5 x .5^2 for the second image: .25, -.75, .75; mean 1/12, std .763763
        ("gated", [0.218218, -1.091089, 0.872872]),
    ],
)
def test_rules_by_hand(rule, expected):
    near(shaped(rule, CONFLICT, HALF)[0, :, 0], torch.tensor(expected))


def test_every_rule_is_tested_by_hand():
    marks = test_rules_by_hand.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
    assert {case[0] for case in marks[0].args[1]} == set(SHAPING_RULES)


def test_raw_sum_follows_the_reward_with_the_larger_spread(example):
    rewards = {"prompt": example["prompt_rewards"], "identity": example["identity_rewards"]}
    # Halves of 1+70, 2+80, 3+60, 6+90: 35.5, 41, 31.5, 48; mean 39, std sqrt(153.5 / 3) = 7.15309
    expected = torch.tensor([-0.48930, 0.27960, -1.04850, 1.25820])
    near(shaped("raw_sum", rewards, HALF)[0, :, 0], expected)


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_opposed_rewards_give_finite_advantages(rule):
    # A_prompt = -A_identity everywhere: 2ab / (a + b) of the advantages themselves would divide by zero.
    prompt = torch.tensor([[1.0, 2, 3, 4, 11]])
    advantages = shaped(rule, {"prompt": prompt, "identity": -prompt}, HALF)
    assert advantages.isfinite().all()
    assert advantages.abs().max() < 2.5


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_every_rule_masks_unscored_images_and_zeroes_flat_groups(rule):
    rewards = {
        "prompt": torch.tensor([[1.0, 2, NAN, 4], [5, 5, 5, 5], [1, NAN, 2, NAN], [NAN] * 4]),
        "identity": torch.tensor([[2.0, 1, 7, 3], [6, 6, 6, 6], [NAN, 1, 2, 3], [1, 2, 3, 4]]),
    }
    advantages = shaped(rule, rewards, torch.tensor([0.5, 0.5]))
    assert advantages.shape == (4, 4, 2)
    unscored = [[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]
    assert torch.equal(advantages[..., 1].isnan().int(), torch.tensor(unscored, dtype=torch.int32))
    assert advantages[0, [0, 1, 3]].abs().max() > 0.1
    assert advantages[1].tolist() == [[0.0, 0.0]] * 4  # no spread
    assert advantages[2, 2].tolist() == [0.0, 0.0]  # the only survivor of its group


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_weights_act_on_exactly_the_rules_that_declare_them(rule):
    first, second = (shaped(rule, CONFLICT, torch.tensor([w])) for w in (0.2, 0.9))
    assert (not torch.equal(first, second)) == SHAPING_RULES[rule].uses_weights


def test_gdpo_is_whitened_over_the_batch():
    rewards = {
        "prompt": torch.tensor([[1.0, 2, 3], [1, 2, 3]]),
        "identity": torch.tensor([[1.0, 2, 3], [3, 2, 1]]),
    }
    # Weighted sums (-1, 0, 1) and (0, 0, 0): mean 0, std sqrt(2 / 5) = .632456 over the six.
    expected = torch.tensor([[-1.581139, 0, 1.581139], [0, 0, 0]])
    near(shaped("gdpo", rewards, HALF)[..., 0], expected)


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_exactly_the_rules_that_declare_static_weights_refuse_changing_ones(rule):
    changing = torch.tensor([0.7, 0.3])
    if not SHAPING_RULES[rule].static_weights:
        assert shaped(rule, CONFLICT, changing).isfinite().all()
        return
    with pytest.raises(ValueError, match=r"weights from 0\.3 to 0\.7; it needs the same weight at every step"):
        shaped(rule, CONFLICT, changing)


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_quality_is_added_outside_rule_and_weights(rule):
    quality = torch.tensor([[5.0, 7, 6]])  # A = (-1, 1, 0)
    weight = torch.tensor([0.7, 0.7])
    without = shaped(rule, CONFLICT, weight)
    combined = shaped(rule, CONFLICT | {"quality": quality}, weight, quality_weights={"quality": 0.2})
    near(combined - without, torch.tensor([[[-0.2, -0.2], [0.2, 0.2], [0, 0]]]))


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_listing_a_reward_twice_in_its_role_changes_nothing(rule):
    twice = {"a": CONFLICT["prompt"], "b": CONFLICT["prompt"], "c": CONFLICT["identity"], "d": CONFLICT["identity"]}
    roles = {"a": "prompt", "b": "prompt", "c": "identity", "d": "identity"}
    near(shaped(rule, twice, HALF, roles=roles), shaped(rule, CONFLICT, HALF))


@pytest.mark.parametrize("rule", ["linear", "min", "sars"])
def test_scale_multiplies_the_rule_and_not_the_bonus(rule):
    rewards = {"prompt": torch.tensor([[0.0, 1.0, 2.0]]), "identity": torch.tensor([[5.0, 4.0, 0.0]])}
    weight = torch.tensor([0.7])
    once, thrice = (shaped(rule, rewards, weight, clip=100.0, scale=scale) for scale in (1.0, 3.0))
    bonus = 0.0
    if rule == "sars":
        prompt, identity = (group_advantages(rewards[role]) for role in ("prompt", "identity"))
        bonus = synergy_bonus(prompt, identity, 0.4)[..., None]
    torch.testing.assert_close(thrice - bonus, 3 * (once - bonus))
    clipped = shaped(rule, rewards, weight, clip=0.5, scale=3.0)
    torch.testing.assert_close(clipped, thrice.clamp(-0.5, 0.5))


def test_clip_bounds_every_rule():
    for rule in SHAPING_RULES:
        assert shaped(rule, CONFLICT, HALF, clip=0.3).abs().max() == pytest.approx(0.3)


# --- calibrated rules ------------------------------------------------------------------------------------------------


def test_the_share_of_the_joint_reward():
    joint, linear = torch.tensor([-0.218218, -0.872872, 1.091089]), torch.tensor([0.0, -0.5, 0.5])
    for share in (0.0, 0.3, 1.0):
        expected = share * joint + (1 - share) * linear
        near(shaped("joint", CONFLICT, HALF, joint_share=share)[0, :, 0], expected)


def test_a_copy_gains_nothing_over_another_view_in_the_joint_reward():
    """Beyond `good` identity is worth no more: with equal prompts the two differ by the linear part alone."""
    rewards = {"prompt": torch.tensor([[2.0, 2, 0]]), "identity": torch.tensor([[9.0, 2, 1.5]])}
    copy, view, _ = shaped("joint", rewards, HALF, joint_share=1.0)[0, :, 0].tolist()
    assert copy == view > 0
    copy, view, _ = shaped("joint", rewards, HALF, joint_share=0.5)[0, :, 0].tolist()
    assert copy > view


def test_a_group_that_the_joint_reward_finds_flat_still_has_its_weighted_advantages():
    rewards = {"prompt": torch.tensor([[1.0, 2, 3]]), "identity": torch.tensor([[0.5, 0.9, 0.2]])}  # all strangers
    assert shaped("joint", rewards, HALF, joint_share=1.0).tolist() == [[[0.0]] * 3]
    near(shaped("joint", rewards, HALF), 0.5 * shaped("linear", rewards, HALF))


def test_several_rewards_of_a_role_are_averaged_before_the_product():
    rewards = CONFLICT | {"face": torch.tensor([[1.0, 2, 1]])}  # qualities 0, 1, 0
    roles = {"prompt": "prompt", "identity": "identity", "face": "identity"}
    # identity (1 + 0) / 2, (0 + 1) / 2, (1 + 0) / 2; products .125, .25, .375: z -1, 0, 1
    near(shaped("joint", rewards, HALF, roles=roles, joint_share=1.0)[0, :, 0], torch.tensor([-1.0, 0, 1]))


def test_above_the_threshold_only_the_prompt_counts_in_the_gated_rule():
    rewards = {"prompt": torch.tensor([[1.0, 2, 3]]), "identity": torch.tensor([[1.9, 5, 1.6]])}  # .9, 4, .6
    near(shaped("gated", rewards, HALF)[0, :, 0], torch.tensor([-1.0, 0, 1]))
    strict = shaped("gated", rewards, HALF, threshold=0.8)[0, :, 0]  # the third: .75 - 5 x .2^2 = .55
    near(strict, group_advantages(torch.tensor([0.25, 0.5, 0.55])))


def test_the_gated_rule_has_no_bounds():
    """Prompts below bad and above good differ all the same, and so do identities below bad."""
    rewards = {"prompt": torch.tensor([[-2.0, 2, 6]]), "identity": torch.tensor([[2.0, 0, 2]])}  # 1, -1, 1
    # -.5, .5 - 5 x 1.5^2 = -10.75, 1.5
    near(shaped("gated", rewards, HALF)[0, :, 0], group_advantages(torch.tensor([-0.5, -10.75, 1.5])))


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_exactly_the_rules_that_declare_calibration_refuse_to_go_without(rule):
    if not SHAPING_RULES[rule].uses_calibration:
        assert step_advantages(rule, CONFLICT, HALF).isfinite().all()
        return
    known = {"prompt": CALIBRATIONS["prompt"]}
    with pytest.raises(ValueError, match=f"{rule} needs calibrations of all rewards; identity has none"):
        step_advantages(rule, CONFLICT, HALF, calibrations=known)


# --- pooled normalisation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_least_spreads_below_those_of_the_groups_change_nothing(rule):
    least = {"prompt": 0.9, "identity": 0.9, OWN: 1e-3}
    assert torch.equal(shaped(rule, CONFLICT, HALF, least_spreads=least), shaped(rule, CONFLICT, HALF))


def test_a_group_with_little_spread_pulls_less():
    rewards = {"prompt": torch.tensor([[1.0, 2, 3], [2.0, 2.1, 2.2]]), "identity": torch.tensor([[0.0, 0, 0]] * 2)}
    found = shaped("linear", rewards, HALF, least_spreads={"prompt": 0.5})[..., 0]
    near(found, torch.tensor([[-0.5, 0, 0.5], [-0.1, 0, 0.1]]))  # the second: .1 / .5 instead of .1 / .1


@pytest.mark.parametrize("rule", [name for name, rule in SHAPING_RULES.items() if rule.quantity])
def test_the_own_quantity_of_a_rule_is_what_it_divides(rule):
    quantity = own_quantity(rule, CONFLICT, HALF, calibrations=CALIBRATIONS)
    assert quantity is not None
    least = 2 * group_spread(quantity)
    halved = shaped(rule, CONFLICT, HALF, least_spreads={OWN: least}, joint_share=1.0)
    near(halved, shaped(rule, CONFLICT, HALF, joint_share=1.0) / 2)


def test_spread_of_groups():
    values = torch.tensor([[1.0, 2, 3], [0, NAN, 4], [NAN, NAN, 5]])  # 1, sqrt(8); a single one has none
    assert group_spread(values) == pytest.approx((1 + 8**0.5) / 2)
    assert torch.tensor(group_spread(torch.tensor([[NAN, 1.0]]))).isnan()
