import math
from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import SHAPING_RULES, sigma_schedule, step_gradient_factor
from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.data import Sample
from customized_grpo.training.advice import notices
from customized_grpo.training.plan import Plan

# method.md: w_prompt of the authors' 25 steps, to five digits.
PUBLISHED = [0.7] * 6 + [
    *(0.68433, 0.66673, 0.63281, 0.57599, 0.5, 0.42401, 0.36719, 0.33327),
    *(0.31567, 0.30719, 0.30327, 0.30147, 0.30066, 0.3003, 0.30013, 0.30006),
    *(0.5, 0.5, 0.5),
]


@pytest.fixture
def plan_of(make_config: Callable[..., RunConfig], samples: list[Sample]) -> Callable[..., Plan]:
    def make(*overrides: str, count: int = 12) -> Plan:
        config = make_config(*overrides)
        sigmas = sigma_schedule(config.sampling.num_steps, float(config.sampling.shift))
        return Plan(config, samples[:count], sigmas)

    return make


# --- samples and seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [1, 3, 5])  # 5 does not divide 12: batches cross the end of an epoch
def test_every_epoch_shows_every_sample_once_in_another_order(prompts: int, plan_of: Callable[..., Plan]):
    plan = plan_of(f"groups.prompts={prompts}")
    shown = [sample.id for update in range(math.ceil(24 / prompts)) for sample in plan.batch(update)]
    first, second = shown[:12], shown[12:24]
    assert sorted(first) == sorted(second) == sorted(sample.id for sample in plan.samples)
    assert first != second


def test_a_batch_depends_only_on_its_number_and_the_seed(plan_of: Callable[..., Plan]):
    plan, again, other = plan_of(), plan_of(), plan_of("seed=1")
    later = [s.id for s in plan.batch(7)]
    assert later == [s.id for s in again.batch(7)]
    assert [s.id for u in range(6) for s in plan.batch(u)] != [s.id for u in range(6) for s in other.batch(u)]


def test_a_long_list_is_permuted_once_an_epoch(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch):
    """And not for every image: a hundred thousand samples take a millisecond each time."""
    plan, permute, made = plan_of("groups.prompts=5"), torch.randperm, []
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: made.append(args) or permute(*args, **kwargs))
    for update in range(5):  # 25 groups of 12 samples: three epochs
        plan.batch(update)
        for group, member in product(range(5), (None, *range(8))):
            plan.seed(update, group, member)
    assert len(made) == 3


def test_every_image_and_every_group_has_its_own_seed(plan_of: Callable[..., Plan]):
    """Also if a short list shows a sample several times in one update: equal images would teach nothing."""
    plan, other = plan_of("groups.prompts=5", count=2), plan_of("groups.prompts=5", "seed=1", count=2)
    members = (None, 0, 1, 2)
    seeds = [plan.seed(update, group, member) for update in range(4) for group in range(5) for member in members]
    assert len(set(seeds)) == len(seeds) == 80
    assert seeds == [plan.seed(u, g, m) for u in range(4) for g in range(5) for m in members]
    assert not set(seeds) & {other.seed(u, g, m) for u in range(4) for g in range(5) for m in members}


def test_a_seed_belongs_to_the_sample_and_its_epoch_not_to_the_batch(plan_of: Callable[..., Plan]):
    wide, narrow = plan_of("groups.prompts=4"), plan_of("groups.prompts=2")
    assert wide.batch(1)[2] == narrow.batch(3)[0]
    assert wide.seed(1, 2, 0) == narrow.seed(3, 0, 0)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_random_windows_cover_exactly_their_range(plan_of: Callable[..., Plan]):
    settings = ("sampling.num_steps=10", "window.size=2", "window.first=1", "window.last=5")
    plan, other = plan_of(*settings), plan_of(*settings, "seed=1")
    windows = [plan.window(update) for update in range(60)]
    assert set(windows) == {(1, 2), (2, 3), (3, 4), (4, 5)}
    assert windows == [plan.window(update) for update in range(60)]
    assert windows != [other.window(update) for update in range(60)]


@pytest.mark.parametrize(
    ("overrides", "windows"),
    [
        (["window.strategy=all", "window.size=null"], [(0, 1, 2)] * 5),
        (["window.strategy=all", "window.size=null", "window.first=1"], [(1, 2)] * 5),
        (["window.strategy=fixed", "window.start=1"], [(1, 2)] * 5),
        (["window.strategy=sliding"], [(0, 1), (1, 2), (0, 1), (1, 2), (0, 1)]),
        (["window.strategy=sliding", "window.every=2"], [(0, 1), (0, 1), (1, 2), (1, 2), (0, 1)]),
        (["window.strategy=sliding", "window.size=1", "window.stride=2"], [(0,), (2,), (1,), (0,), (2,)]),
    ],
)
def test_windows_by_strategy(
    overrides: list[str], windows: list[tuple[int, ...]], plan_of: Callable[..., Plan]
):  # T = 4, so steps 0 to 2 can be trained
    plan = plan_of(*overrides)
    assert [plan.window(update) for update in range(5)] == windows


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["step", "sigma"])
def test_weights_of_true_steps_are_the_published_ones(reading: str, plan_of: Callable[..., Plan]):
    plan = plan_of("sampling.num_steps=25", "window.last=23", f"weighting.progress={reading}")
    steps = [23, 3, 10, 11, 22, 6]  # any order, any gaps
    expected = torch.tensor([PUBLISHED[step] for step in steps], dtype=torch.float64)
    torch.testing.assert_close(plan.prompt_weight(steps), expected, atol=1e-5, rtol=0)


def test_weights_by_sigma_follow_the_noise_level(plan_of: Callable[..., Plan]):
    """At shift 1 step 5 of 10 has sigma .5, so u = 1 - .5 / 2 = .75: late, though only half the steps are done."""
    plan = plan_of("sampling.num_steps=10", "sampling.shift=1", "weighting.progress=sigma", "window.last=8")
    by_hand = 0.3 + 0.4 / (1 + math.exp(20 * (0.75 - 0.4)))
    assert plan.prompt_weight([5]).item() == pytest.approx(by_hand, abs=1e-12)
    # By step u is .5, and the weight .3 + .4 / (1 + e^2) = .348.
    assert plan_of("sampling.num_steps=10").prompt_weight([5]).item() == pytest.approx(0.34768, abs=1e-5)


def test_constant_weights_are_constant(plan_of: Callable[..., Plan]):
    plan = plan_of("weighting.kind=constant", "weighting.prompt=.6")
    assert plan.prompt_weight([0, 1, 2]).tolist() == [0.6] * 3


@pytest.mark.parametrize("dynamics", ["flow", "dance", "cps"])
def test_equal_scales_even_out_the_pull_of_the_steps(dynamics: str, plan_of: Callable[..., Plan]):
    plan = plan_of(
        "sampling.num_steps=10", "window.first=1", "window.last=6", f"noise.dynamics={dynamics}", "noise.level=.5"
    )
    steps = range(1, 7)
    pull = torch.stack([_pull(plan, step) for step in steps])
    scaled = plan.scales(steps) * pull
    torch.testing.assert_close(scaled, scaled[:1].expand(6))
    assert plan.scales(steps).mean().item() == pytest.approx(1)
    # A window's own scales are those of the whole range: windows stay comparable.
    assert torch.equal(plan.scales([4, 5]), plan.scales(steps)[3:5])


def _pull(plan: Plan, step: int) -> Tensor:
    noise, sigmas = plan.config.noise, plan.sigmas
    return step_gradient_factor(noise.dynamics, sigmas[step], sigmas[step + 1], noise.level, sigmas[1])


def test_what_the_ratio_check_allows_depends_on_the_trust_region(plan_of: Callable[..., Plan]):
    """ "guard" scales a ratio by the noise of the step, a sqrt(sigma / (1 - sigma)) sqrt(-dt); "dppo" clips none.

    T = 4, shift 3: sigma 1, .9, .75, .5. Step 1: .8 sqrt(.9 / .1) sqrt(.15) = .92952; step 2: .8 sqrt(3) sqrt(.25)
    = .69282."""
    guard = plan_of("objective.trust=guard", "objective.step_scale=none", "objective.clip_range=2e-4")
    assert guard.ratio_scales([1, 2]).tolist() == pytest.approx([0.92952, 0.69282], abs=1e-5)
    assert guard.ratio_limits([1, 2]).tolist() == pytest.approx([1e-4 / 0.92952, 1e-4 / 0.69282], rel=1e-4)
    assert guard.pull([1]).item() == pytest.approx(0.92952 * _pull(guard, 1).item(), rel=1e-4)
    assert plan_of("objective.trust=dppo").ratio_limits([1, 2]).tolist() == [math.inf] * 2


def test_scales_of_a_fixed_window_have_mean_one_and_without_scaling_are_one(plan_of: Callable[..., Plan]):
    fixed = plan_of("window.strategy=fixed", "window.start=1")
    assert fixed.scales([1, 2]).mean().item() == pytest.approx(1)
    assert plan_of("objective.step_scale=none").scales([1, 2]).tolist() == [1, 1]


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_a_configuration_refuses_changing_weights_for_exactly_the_rules_that_need_static_ones(
    rule: str, make_config: Callable[..., RunConfig]
):
    make_config(f"shaping.rule={rule}", "weighting.kind=constant")
    if not SHAPING_RULES[rule].static_weights:
        make_config(f"shaping.rule={rule}", "weighting.kind=tdw")
        return
    with pytest.raises(ConfigError, match=r"add weighting\.kind=constant"):
        make_config(f"shaping.rule={rule}", "weighting.kind=tdw")


# --- the learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_rollout", "expected"), [(1, [1, 2, 3, 4, 4, 4]), (2, [0.5, 1, 1.5, 2, 2.5, 3])])
def test_warm_up_counts_updates(per_rollout: int, expected: list[float], plan_of: Callable[..., Plan]):
    plan = plan_of("optimizer.lr=4", "optimizer.warmup=4", f"objective.updates_per_rollout={per_rollout}")
    assert [plan.lr(step) for step in range(6)] == pytest.approx(expected)
    assert all(a <= b for a, b in pairwise(map(plan.lr, range(12))))
    assert plan.lr(100) == 4
    assert plan_of("optimizer.lr=4", "optimizer.warmup=0").lr(0) == 4


def test_rows_of_a_rule_without_weights_have_no_weight(plan_of: Callable[..., Plan]):
    plan = plan_of("shaping.rule=min")
    (row,) = plan.step_rows([1], plan.prompt_weight([1]))
    assert row == {"step": 1, "pull": pytest.approx(plan.pull([1]).item())}


# --- what the user is told -------------------------------------------------------------------------------------------


def test_notices(plan_of: Callable[..., Plan]):
    every = "window.last=null"
    (short,) = notices(plan_of("sampling.num_steps=16", every))
    assert "with 16 steps no trained step reaches the final phase" in short
    assert notices(plan_of("sampling.num_steps=17", every)) == []  # step 15 of 17 is at .882
    (early,) = notices(plan_of("sampling.num_steps=25", "window.last=10"))
    assert "with 25 steps no trained step reaches the final phase" in early
    assert "the last is step 10. " in early
    assert notices(plan_of("sampling.num_steps=16", "weighting.kind=constant")) == []
    assert notices(plan_of("shaping.rule=min", "shaping.gamma=.6", "shaping.recentre=true")) == [
        'the rule "min" has no weights: the section `weighting` has no effect',
        'the rule "min" has no bonus: shaping.gamma has no effect',
        'the rule "min" has no bonus: shaping.recentre has no effect',
    ]
    assert notices(plan_of("shaping.rule=linear", "weighting.kind=constant", "weighting.prompt=.6")) == []
    several = ("weighting.kind=constant", "objective.minibatches=2")
    assert notices(plan_of(*several, "objective.trust=dppo")) == []
    assert notices(plan_of(*several, "objective.trust=dppo", "objective.clip_range=1e-3")) == [
        'the trust region "dppo" does not read objective.clip_range: it has no effect'
    ]
    assert notices(plan_of(*several, "objective.max_divergence=1e-3")) == [
        'the trust region "clip" does not read objective.max_divergence: it has no effect'
    ]
    (alone,) = notices(plan_of("weighting.kind=constant", "objective.trust=dppo"))
    assert "objective.trust=dppo has no effect; it acts from the second step on" in alone
    assert "one subject" in notices(plan_of("sampling.num_steps=17", every, count=1))[0]
    (elsewhere,) = notices(plan_of("sampling.num_steps=17", every, "data.source=list.json"))
    assert "the built-in model has seen nothing but its own critters" in elsewhere
