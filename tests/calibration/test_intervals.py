"""Intervals: known answers, and coverage at the stated rate."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from customized_grpo.calibration.intervals import estimate, estimates, holm, over_seeds, paired_difference


def test_an_interval_is_the_bootstrap_of_the_mean():
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 2, 400))
    figure = estimate(values)
    expected = stats.bootstrap((values.numpy(),), np.mean, n_resamples=5000, method="percentile", rng=1)
    assert figure.mean == pytest.approx(values.mean().item())
    assert (figure.low, figure.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    assert figure == estimate(values)


def test_whole_subjects_are_resampled():
    """Four equal images of each subject carry no more information than one."""
    subjects = torch.from_numpy(np.random.default_rng(1).normal(0, 1, 50))
    repeated, names = subjects.repeat_interleave(4), [f"subject-{i}" for i in range(50) for _ in range(4)]
    alone, clustered, naive = estimate(subjects), estimate(repeated, names), estimate(repeated)
    assert clustered.mean == pytest.approx(alone.mean)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert naive.high - naive.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)


@pytest.mark.parametrize("per_subject", [1, 5])
def test_intervals_cover_the_true_mean_at_the_stated_rate(per_subject: int):
    """95 % of 400 experiments of 60 subjects each, within four standard errors."""
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(400):
        subjects = rng.normal(0.3, 1, 60).repeat(per_subject) + rng.normal(0, 0.5, 60 * per_subject)
        names = [i // per_subject for i in range(60 * per_subject)]
        figure = estimate(torch.from_numpy(subjects), names, seed=trial)
        covered += figure.low <= 0.3 <= figure.high
    assert covered / 400 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 400))


def test_a_single_subject_has_its_values_resampled():
    """Two subjects with ten images each: half of the resamples hold one subject only. One subject: its images."""
    values = torch.tensor([0.0] * 10 + [1.0] * 10)
    two = estimate(values, ["a"] * 10 + ["b"] * 10)
    assert (two.mean, two.low, two.high) == (0.5, 0, 1)
    assert estimate(values, ["a"] * 20) == estimate(values)
    assert estimate(values).low == pytest.approx(0.3, abs=0.06)
    one_scored = estimate(torch.cat([values, torch.tensor([math.nan])]), ["a"] * 20 + ["b"])
    assert one_scored == estimate(values)


def test_unscored_cases_are_left_out():
    values = torch.tensor([1.0, math.nan, 3.0])
    assert estimate(values).mean == 2
    assert estimate(values, ["a", "b", "b"]).low == 1
    with pytest.raises(ValueError, match="every case is unscored"):
        estimate(torch.full((3,), math.nan))


def test_a_selection_applies_to_values_and_clusters():
    scores = {"m": torch.tensor([1.0, 2.0, 5.0, 7.0])}
    chosen = torch.tensor([True, True, False, False])
    assert estimates(scores, chosen, ["a", "a", "b", "b"])["m"] == estimate(torch.tensor([1.0, 2.0]), ["a", "a"])
    assert estimates(scores, chosen)["m"].mean == 1.5
    assert estimates(scores)["m"].mean == 3.75


def test_intervals_over_seeds_are_t_intervals():
    """By hand: 1, 2, 3 have mean 2, standard error 1 / sqrt(3) and t(.975, 2) = 4.3027."""
    figure = over_seeds([1, 2, 3])
    assert (figure.mean, figure.low, figure.high) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)
    alone = over_seeds([5])
    assert alone.mean == 5
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_differences_are_paired_by_seed():
    """Seeds differ by 10, arms by .1 to .3: unpaired, the difference would be lost."""
    difference = paired_difference({0: 0.1, 1: 10.2, 2: 20.3, 9: 5.0}, {2: 20.0, 1: 10.0, 0: 0.0, 7: 1.0})
    assert difference.pairs == 3
    assert difference.estimate.mean == pytest.approx(0.2)
    assert difference.p_value == pytest.approx(0.0742, abs=1e-4)  # t = .2 / (.1 / sqrt(3)) = 3.4641, two degrees
    assert difference.estimate.low < 0 < difference.estimate.high


def test_differences_without_spread_or_without_pairs():
    assert paired_difference({0: 1, 1: 2}, {0: 0, 1: 1}).p_value == 0
    assert paired_difference({0: 1, 1: 2}, {0: 1, 1: 2}).p_value == 1
    assert math.isnan(paired_difference({0: 1}, {0: 2}).p_value)
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1}, {1: 1})


def test_holm_by_hand():
    """.01 x 4, .03 x 3, .03 x 2 (not below the one before), .2 x 1."""
    assert holm([0.03, 0.2, 0.01, 0.03]) == pytest.approx([0.09, 0.2, 0.04, 0.09])
    adjusted = holm([0.6, math.nan, 0.5])
    assert adjusted[0] == 1
    assert math.isnan(adjusted[1])
    assert adjusted[2] == 1
    assert holm([]) == []
