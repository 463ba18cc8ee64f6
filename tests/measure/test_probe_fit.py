"""Prompt shares by hand, and schedules that are recovered from their own curves."""

import re
from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import TimeAwareWeights
from customized_grpo.calibration.intervals import RESAMPLES
from customized_grpo.measure.probe_fit import (
    Fit,
    Shares,
    equal_constant,
    fit_weights,
    kind_of_profile,
    obstacle,
    prompt_shares,
    verdict,
)

# --- equal influence -------------------------------------------------------------------------------------------------


def test_the_constant_of_equal_influence_by_hand():
    """c P = (3, 4, 1), c I = (1, 2, 4): kept (2.4 + 2 + .2) / 8 = .575, left (.2 + 1 + 3.2) / 7 = 22 / 35."""
    weights, times = torch.tensor([0.8, 0.5, 0.2]).double(), torch.tensor([1.0, 2.0, 1.0]).double()
    prompt, identity = spreads(3, 2, 1), spreads(1, 1, 4)
    for unit in (1.0, 100.0):
        found = equal_constant(weights, times, unit * prompt, identity)
        assert found == pytest.approx(0.575 / (0.575 + 22 / 35))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_constant_acts_like_itself(weight: float):
    constant, times = torch.full((3,), weight).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    assert equal_constant(constant, times, spreads(3, 2, 1), spreads(1, 1, 4)) == pytest.approx(weight)


def test_tdw_on_the_built_in_model_acts_like_the_constant_of_the_second_experiment():
    """docs/probe.md prints these spreads; docs/results2.md has the constants .593 and, for TDW reversed, .403."""
    identity = spreads(0.256, 0.289, 0.229, 0.212, 0.169, 0.150, 0.077, 0.045, 0.024)
    prompt = spreads(0.430, 0.409, 0.310, 0.275, 0.207, 0.137, 0.100, 0.049, 0.013)
    times = torch.tensor([1.0, 2, 2, 2, 2, 2, 2, 2, 1]).double()  # windows of two steps
    weights = TimeAwareWeights().prompt_weight(torch.arange(9).double() / 10)
    assert equal_constant(weights, times, prompt, identity) == pytest.approx(0.593, abs=1e-3)
    assert equal_constant(1 - weights, times, prompt, identity) == pytest.approx(0.403, abs=1e-3)


# --- shares ----------------------------------------------------------------------------------------------------------


def spreads(*per_step: float, prompts: int = 4) -> Tensor:
    return torch.tensor(per_step).double()[:, None].expand(-1, prompts)


def test_shares_by_hand_and_without_units():
    """P = (3, 2, 1) / 2, I = (1, 1, 4) / 2: shares 3/4, 2/3, 1/5, in any unit of a reward."""
    prompt, identity = spreads(3, 2, 1), spreads(1, 1, 4)
    expected = torch.tensor([3 / 4, 2 / 3, 1 / 5]).double()
    for unit in (1.0, 100.0):
        shares = prompt_shares(unit * prompt, identity, "abcd")
        torch.testing.assert_close(shares.values, expected)
        torch.testing.assert_close(shares.resampled, expected.expand(RESAMPLES, -1))  # all prompts are the same
    assert shares.fall().mean == pytest.approx(3 / 4 - 1 / 5)  # of three steps, the middle one is in neither half


def test_an_unscored_prompt_does_not_count():
    prompt = spreads(3, 2, 1).clone()
    prompt[:, 0] = nan
    shares = prompt_shares(prompt, spreads(1, 1, 4), "abcd")
    torch.testing.assert_close(shares.values, torch.tensor([3 / 4, 2 / 3, 1 / 5]).double())
    assert len(shares.resampled) > 0.98 * RESAMPLES  # except resamples of nothing but the unscored prompt


def test_intervals_of_shares_cover_the_truth_at_the_stated_rate():
    """80 probes of 24 prompts whose spreads vary by a half around known means: 95 % intervals."""
    rng, covered = np.random.default_rng(0), []
    truth = prompt_shares(spreads(4, 3, 2, 1), spreads(1, 1, 1, 2), "abcd").values
    for _ in range(80):
        prompt, identity = (
            torch.from_numpy(rng.gamma(4, 1 / 4, (4, 24))) * spreads(*means, prompts=24)
            for means in ((4, 3, 2, 1), (1, 1, 1, 2))
        )
        found = prompt_shares(prompt, identity, [str(n) for n in range(24)]).estimates()
        covered += [each.low <= t <= each.high for each, t in zip(found, truth.tolist(), strict=True)]
    assert 0.88 <= np.mean(covered) <= 0.98  # 320 of them; the percentile bootstrap is a little narrow at 24


def test_prompts_of_one_subject_are_resampled_together():
    """Two subjects, one of which spreads the prompt early: a resample holds that one 0, 1 or 2 times."""
    prompt = torch.tensor([[4.0, 4.0, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0]]).double()
    shares = prompt_shares(prompt, spreads(1, 1), ["a", "a", "a", "b"])
    assert len(shares.resampled[:, 0].unique()) == 3
    assert (shares.units, shares.unit) == (2, "subjects")


def test_prompts_of_a_single_subject_are_resampled_one_by_one():
    """Resampling the whole subject would give the same value each time."""
    prompt = torch.tensor([[4.0, 3.0, 1.0], [1.0, 1.0, 2.0]]).double()
    alone, several = (prompt_shares(prompt, spreads(1, 1, prompts=3), names) for names in ("aaa", "abc"))
    assert torch.equal(alone.resampled, several.resampled)
    assert (alone.units, alone.unit) == (3, "prompts")
    assert alone.standard_error() > 0.01


@pytest.mark.parametrize(
    ("prompt", "identity", "complaint"),
    [
        ((1,) * 6, (1,) * 6, "6 steps can have noise.*num_steps to 8 or more"),
        ((0,) * 7, (1,) * 7, "noise does not change the prompt reward at any step"),
        ((1,) * 7, (0,) * 7, "noise does not change the identity reward"),
        ((1, 1, 1, 0, 1, 1, 1), (1, 1, 1, 0, 1, 1, 1), r"noise at steps \[3\] changes neither"),
        ((1, 1, 1, 0, 1, 1, 1), (1,) * 7, None),
    ],
)
def test_obstacles_to_a_fit(prompt: Any, identity: Any, complaint: str | None):
    found = obstacle(spreads(*prompt), spreads(*identity))
    assert re.search(complaint, found or "") if complaint else found is None


# --- the fit ---------------------------------------------------------------------------------------------------------


def fitted(
    values: Sequence[float] | Tensor, num_steps: int, uncertainty: float = 0.01, units: int = 32, unit: str = "prompts"
) -> Fit:
    """The fit to known shares with independent errors of that size."""
    shares = torch.as_tensor(values).double()
    noise = torch.randn(RESAMPLES, len(shares), generator=torch.Generator().manual_seed(0)).double()
    return fit_weights(Shares(shares, shares + uncertainty * noise, units, unit), progress_of(num_steps))


def progress_of(num_steps: int) -> Tensor:
    return torch.arange(num_steps - 1).double() / num_steps


@pytest.mark.parametrize(
    ("weights", "num_steps"),
    [
        (TimeAwareWeights(), 25),  # the fewest steps with two in the published final phase
        (TimeAwareWeights(0.8, 0.1, 0.6, start=0.3, centre=0.5, end=0.7, rate=15), 16),
    ],
)
def test_a_schedule_is_recovered_from_its_own_curve(weights: TimeAwareWeights, num_steps: int):
    """All seven numbers; start and end up to the two steps that they lie between."""
    fit = fitted(weights.prompt_weight(progress_of(num_steps)), num_steps)
    assert (fit.numbers, fit.residual < 1e-3) == (7, True)
    for name, tolerance in (("high", 0.002), ("low", 0.002), ("centre", 0.002), ("final", 0), ("rate", 0.2)):
        assert getattr(fit.weights, name) == pytest.approx(getattr(weights, name), abs=tolerance), name
    for name in ("start", "end"):
        assert abs(getattr(fit.weights, name) - getattr(weights, name)) <= 1 / num_steps


@pytest.mark.parametrize(
    "weights",
    [
        TimeAwareWeights(),
        TimeAwareWeights(high=0.4, low=0.65),  # reversed
        TimeAwareWeights(high=0.9, low=0.2, start=0.0, centre=0.3, rate=12),
    ],
)
def test_ten_steps_recover_the_fall_without_phases_that_they_cannot_show(weights: TimeAwareWeights):
    """At ten steps the published hold changes one weight, by .007: not enough for another number."""
    fit = fitted(weights.prompt_weight(progress_of(10)), 10)
    for name, tolerance in (("high", 0.005), ("low", 0.005), ("centre", 0.005), ("rate", 0.5), ("start", 0.24)):
        assert getattr(fit.weights, name) == pytest.approx(getattr(weights, name), abs=tolerance), name
    assert (fit.numbers, fit.residual < 0.003) == (4, True)


def test_without_a_step_in_the_final_phase_its_numbers_are_the_published_ones():
    found = fitted(TimeAwareWeights(final=0.9).prompt_weight(progress_of(10)), 10).weights
    assert (found.final, found.end) == (TimeAwareWeights.final, TimeAwareWeights.end)


def test_there_is_no_final_phase_if_the_shares_keep_falling():
    """At T = 25 steps 22 and 23 lie beyond the published end, .88."""
    fit = fitted(TimeAwareWeights(end=1.0).prompt_weight(progress_of(25)), 25)
    assert fit.weights.end == 1.0
    assert not fit.weights.in_final_phase(progress_of(25)).any()
    assert (fit.numbers, fit.residual < 1e-3) == (5, True)


def test_phases_must_improve_the_fit_by_more_than_chance():
    """A smooth fall with errors of .01: of six schedules at most one has a hold or a final phase."""
    smooth = TimeAwareWeights(start=0.0, centre=0.45, rate=8).prompt_weight(progress_of(10))
    noise = torch.randn(6, 9, generator=torch.Generator().manual_seed(3)).double()
    assert sum(fitted(smooth + 0.01 * each, 10).numbers == 4 for each in noise) >= 5


def test_a_flat_profile_is_reported_as_flat():
    noise = torch.randn(9, generator=torch.Generator().manual_seed(1)).double()
    fit = fitted(0.45 + 0.01 * noise, 10)
    assert kind_of_profile(fit) == "flat"
    assert "A constant weight fits as well (kind: constant); how high it should be, the probe cannot tell" in verdict(
        fit
    )
    assert fitted([0.5] * 9, 10).constant_residual == 0


@pytest.mark.parametrize(
    ("shares", "kind", "words"),
    [
        ((0.7, 0.7, 0.65, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3), "falls", "as TDW assumes"),
        ((0.3, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7, 0.7), "rises", "Reversed"),
        ((0.4, 0.5, 0.6, 0.6, 0.7, 0.6, 0.6, 0.5, 0.4), "uneven", "neither falling nor rising"),
    ],
)
def test_the_verdict_names_the_shape(shares: tuple[float, ...], kind: str, words: str):
    fit = fitted(shares, 10)
    assert kind_of_profile(fit) == kind
    assert words in verdict(fit)
    if kind == "uneven":
        assert "misses the shares by more than chance" in verdict(fit)
        assert fit.residual > 0.03


@pytest.mark.parametrize(
    ("units", "unit", "words"),
    [
        (
            2,
            "prompts",
            "Only 2 prompts, too few for a verdict: use --prompts 10 or more. As far as they show: The prompt",
        ),
        (9, "subjects", "Only 9 subjects, too few for a verdict: use samples of 10 or more. As far as they show: Th"),
        (10, "prompts", "The prompt's share of what a step decides falls"),
    ],
)
def test_a_verdict_on_few_units_starts_with_a_caution(units: int, unit: str, words: str):
    fit = fitted((0.7, 0.7, 0.65, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3), 10, units=units, unit=unit)
    assert verdict(fit).startswith(words)


def test_noise_hides_a_fall():
    """A fall that is smaller than the uncertainty of the shares."""
    assert kind_of_profile(fitted((0.55, 0.52, 0.5, 0.5, 0.5, 0.48, 0.46), 8, uncertainty=0.1)) == "flat"


def test_residuals_belong_to_the_rounded_schedule():
    values = torch.tensor([0.61, 0.63, 0.55, 0.52, 0.47, 0.48, 0.36, 0.37, 0.31]).double()
    fit = fitted(values, 10)
    written = TimeAwareWeights(**{k: v for k, v in fit.section("step").items() if k not in ("kind", "progress")})  # pyright: ignore[reportArgumentType]
    error = written.prompt_weight(progress_of(10)) - values
    assert fit.residual == pytest.approx(error.square().mean().sqrt().item(), abs=1e-12)
    assert fit.constant_residual == pytest.approx(values.std(unbiased=False).item(), abs=1e-12)
    assert fit.residual < 0.4 * fit.constant_residual
