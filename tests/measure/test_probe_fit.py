"""Prompt shares by hand, and schedules that are found again from their own curves."""

import re
from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import TimeAwareWeights
from customized_grpo.measure.intervals import RESAMPLES
from customized_grpo.measure.probe_fit import (
    Fit,
    Shares,
    fit_weights,
    kind_of_profile,
    obstacle,
    prompt_shares,
    verdict,
)

# --- shares ----------------------------------------------------------------------------------------------------------


def spreads(*per_step: float, prompts: int = 4) -> Tensor:
    return torch.tensor(per_step).double()[:, None].expand(-1, prompts)


def test_shares_by_hand_and_without_units():
    """P = (3, 2, 1) / 2, I = (1, 1, 4) / 2: shares 3/4, 2/3, 1/5, whatever the unit of a reward."""
    prompt, identity = spreads(3, 2, 1), spreads(1, 1, 4)
    expected = torch.tensor([3 / 4, 2 / 3, 1 / 5]).double()
    for unit in (1.0, 100.0):
        shares = prompt_shares(unit * prompt, identity, "abcd")
        torch.testing.assert_close(shares.values, expected)
        torch.testing.assert_close(shares.resampled, expected.expand(RESAMPLES, -1))  # all prompts are alike
    assert shares.fall().mean == pytest.approx(3 / 4 - 1 / 5)  # of three steps, the middle one is in neither half


def test_an_unscored_prompt_is_left_out_of_its_reward():
    prompt = spreads(3, 2, 1).clone()
    prompt[:, 0] = nan
    shares = prompt_shares(prompt, spreads(1, 1, 4), "abcd")
    torch.testing.assert_close(shares.values, torch.tensor([3 / 4, 2 / 3, 1 / 5]).double())
    assert len(shares.resampled) > 0.98 * RESAMPLES  # but for resamples that hold only the unscored prompt


def test_intervals_of_shares_cover_the_truth_as_often_as_they_say():
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
    """Whole subjects would leave one resample, and no doubt about anything."""
    prompt = torch.tensor([[4.0, 3.0, 1.0], [1.0, 1.0, 2.0]]).double()
    alone, several = (prompt_shares(prompt, spreads(1, 1, prompts=3), names) for names in ("aaa", "abc"))
    assert torch.equal(alone.resampled, several.resampled)
    assert (alone.units, alone.unit) == (3, "prompts")
    assert alone.standard_error() > 0.01


@pytest.mark.parametrize(
    ("prompt", "identity", "complaint"),
    [
        ((1,) * 6, (1,) * 6, "6 steps can have noise.*num_steps to 8 or more"),
        ((0,) * 7, (1,) * 7, "the prompt reward is the same whatever the noise"),
        ((1,) * 7, (0,) * 7, "the identity reward is the same"),
        ((1, 1, 1, 0, 1, 1, 1), (1, 1, 1, 0, 1, 1, 1), r"noise at steps \[3\] changes neither"),
        ((1, 1, 1, 0, 1, 1, 1), (1,) * 7, None),
    ],
)
def test_what_keeps_a_schedule_from_being_fitted(prompt: Any, identity: Any, complaint: str | None):
    found = obstacle(spreads(*prompt), spreads(*identity))
    assert re.search(complaint, found or "") if complaint else found is None


# --- the fit ---------------------------------------------------------------------------------------------------------


def fitted(
    values: Sequence[float] | Tensor, num_steps: int, uncertainty: float = 0.01, units: int = 32, unit: str = "prompts"
) -> Fit:
    """The fit to shares that are known but for independent errors of that size."""
    shares = torch.as_tensor(values).double()
    noise = torch.randn(RESAMPLES, len(shares), generator=torch.Generator().manual_seed(0)).double()
    return fit_weights(Shares(shares, shares + uncertainty * noise, units, unit), progress_of(num_steps))


def progress_of(num_steps: int) -> Tensor:
    return torch.arange(num_steps - 1).double() / num_steps


@pytest.mark.parametrize(
    "weights", [TimeAwareWeights(), TimeAwareWeights(0.8, 0.1, 0.6, start=0.3, centre=0.5, end=0.7, rate=15)]
)
def test_a_schedule_is_found_again_from_its_own_curve(weights: TimeAwareWeights):
    """All seven numbers; start and end to within the two steps that they lie between."""
    fit = fitted(weights.prompt_weight(progress_of(25)), 25)
    assert (fit.numbers, fit.residual < 1e-3) == (7, True)
    for name, tolerance in (("high", 0.002), ("low", 0.002), ("centre", 0.002), ("final", 0), ("rate", 0.2)):
        assert getattr(fit.weights, name) == pytest.approx(getattr(weights, name), abs=tolerance), name
    for name in ("start", "end"):
        assert abs(getattr(fit.weights, name) - getattr(weights, name)) <= 1 / 25


@pytest.mark.parametrize(
    "weights",
    [
        TimeAwareWeights(),
        TimeAwareWeights(high=0.4, low=0.65),  # reversed
        TimeAwareWeights(high=0.9, low=0.2, start=0.0, centre=0.3, rate=12),
    ],
)
def test_ten_steps_give_the_fall_back_but_no_phase_that_they_cannot_show(weights: TimeAwareWeights):
    """At ten steps the published hold changes one weight, by .007: it does not earn a number of its own."""
    fit = fitted(weights.prompt_weight(progress_of(10)), 10)
    for name, tolerance in (("high", 0.005), ("low", 0.005), ("centre", 0.005), ("rate", 0.5), ("start", 0.24)):
        assert getattr(fit.weights, name) == pytest.approx(getattr(weights, name), abs=tolerance), name
    assert (fit.numbers, fit.residual < 0.003) == (4, True)


def test_without_a_step_in_the_final_phase_its_numbers_are_the_published_ones():
    found = fitted(TimeAwareWeights(final=0.9).prompt_weight(progress_of(10)), 10).weights
    assert (found.final, found.end) == (TimeAwareWeights.final, TimeAwareWeights.end)


def test_where_the_published_final_phase_would_begin_too_early_there_is_none():
    """At T = 25 steps 22 and 23 lie behind .88; shares that keep falling there have no final phase."""
    fit = fitted(TimeAwareWeights(end=1.0).prompt_weight(progress_of(25)), 25)
    assert fit.weights.end == 1.0
    assert not fit.weights.in_final_phase(progress_of(25)).any()
    assert (fit.numbers, fit.residual < 1e-3) == (5, True)


def test_phases_must_earn_their_numbers():
    """A smooth fall under errors of .01: nine of ten schedules have neither a hold nor a final phase."""
    smooth = TimeAwareWeights(start=0.0, centre=0.45, rate=8).prompt_weight(progress_of(10))
    noise = torch.randn(10, 9, generator=torch.Generator().manual_seed(3)).double()
    assert sum(fitted(smooth + 0.01 * each, 10).numbers == 4 for each in noise) >= 9


def test_a_flat_profile_is_said_to_be_flat():
    noise = torch.randn(9, generator=torch.Generator().manual_seed(1)).double()
    fit = fitted(0.45 + 0.01 * noise, 10)
    assert kind_of_profile(fit) == "flat"
    assert "A constant weight fits as well (kind: constant); how high it should be this does not tell" in verdict(fit)
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
        (2, "prompts", "Only 2 prompts, too few for a verdict: use --prompts 10 or more. As far as they show: Early"),
        (9, "subjects", "Only 9 subjects, too few for a verdict: use samples of 10 or more. As far as they show: Ea"),
        (10, "prompts", "Early steps decide more of the prompt"),
    ],
)
def test_the_verdict_says_how_little_it_rests_on(units: int, unit: str, words: str):
    fit = fitted((0.7, 0.7, 0.65, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3), 10, units=units, unit=unit)
    assert verdict(fit).startswith(words)


def test_noise_hides_a_fall():
    """The same shares, but so uncertain that prompts cannot tell the halves apart."""
    assert kind_of_profile(fitted((0.55, 0.52, 0.5, 0.5, 0.5, 0.48, 0.46), 8, uncertainty=0.1)) == "flat"


def test_residuals_are_those_of_the_schedule_that_is_written():
    values = torch.tensor([0.61, 0.63, 0.55, 0.52, 0.47, 0.48, 0.36, 0.37, 0.31]).double()
    fit = fitted(values, 10)
    written = TimeAwareWeights(**{k: v for k, v in fit.section("step").items() if k not in ("kind", "progress")})  # pyright: ignore[reportArgumentType]
    error = written.prompt_weight(progress_of(10)) - values
    assert fit.residual == pytest.approx(error.square().mean().sqrt().item(), abs=1e-12)
    assert fit.constant_residual == pytest.approx(values.std(unbiased=False).item(), abs=1e-12)
    assert fit.residual < 0.4 * fit.constant_residual
