"""Calibrated qualities, running figures and balanced weights, by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch

from customized_grpo.algorithm import Calibration, RunningFigures, dual_level, proportional_shift, shifted

NAN = math.nan
ROLES = {"prompt": "prompt", "identity": "identity"}


def figures(**entries: tuple[float, float, float]) -> RunningFigures:
    """Running figures with (mean, best, spread) of each reward."""
    means, best, spreads = ({name: entry[i] for name, entry in entries.items()} for i in range(3))
    return RunningFigures(5, means, best, spreads)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_position_and_quality():
    scores = torch.tensor([0.0, 1.0, 2.0, 4.0, NAN])
    free, capped = Calibration(1, 3), Calibration(1, 3, capped=True)
    torch.testing.assert_close(free.position(scores), torch.tensor([-0.5, 0, 0.5, 1.5, NAN]), equal_nan=True)
    torch.testing.assert_close(free.quality(scores), torch.tensor([0, 0, 0.5, 1.5, NAN]), equal_nan=True)
    torch.testing.assert_close(capped.quality(scores), torch.tensor([0, 0, 0.5, 1, NAN]), equal_nan=True)


@pytest.mark.parametrize(("bad", "good"), [(1, 1), (2, 1), (NAN, 1), (0, math.inf), (-math.inf, 0)])
def test_good_must_be_above_bad(bad: float, good: float):
    with pytest.raises(ValueError, match="good must be the higher one"):
        Calibration(bad, good)


# --- running figures -------------------------------------------------------------------------------------------------


def test_running_figures_by_hand():
    first = RunningFigures().after({"a": torch.tensor([[0.0, 2], [4, 6]])})  # mean 3, spreads sqrt(2) and sqrt(2)
    assert (first.updates, first.means, first.best) == (1, {"a": 3.0}, {"a": 3.0})
    assert first.spreads["a"] == pytest.approx(2**0.5)
    second = first.after({"a": torch.tensor([[0.0, 0], [1, 1]])})  # mean .5, no spread
    assert second.means["a"] == pytest.approx(0.9 * 3 + 0.1 * 0.5)
    assert second.best == {"a": 3.0}
    assert second.spreads["a"] == pytest.approx(2**0.5 / 2)  # the mean of two updates


def test_the_mean_spread_looks_back_on_about_fifty_updates():
    running = RunningFigures()
    for _ in range(400):
        running = running.after({"a": torch.tensor([[0.0, 2]])})
    later = running.after({"a": torch.tensor([[0.0, 4]])})
    assert later.spreads["a"] - running.spreads["a"] == pytest.approx(2**0.5 / 50)


def test_an_update_that_a_reward_could_not_score_leaves_its_figures():
    first = RunningFigures().after({"a": torch.tensor([[1.0, 3]]), "b": torch.tensor([[NAN, NAN]])})
    assert (set(first.means), set(first.spreads)) == ({"a"}, {"a"})
    second = first.after({"a": torch.tensor([[NAN, NAN]]), "b": torch.tensor([[NAN, 2.0]])})
    assert second.means == {"a": 2.0, "b": 2.0}
    assert second.spreads == first.spreads  # a single image has no spread


def test_running_figures_survive_json():
    running = RunningFigures().after({"a": torch.rand(3, 4)}).after({"a": torch.rand(3, 4)})
    assert RunningFigures(**json.loads(json.dumps(running.as_dict()))) == running


# --- balance ---------------------------------------------------------------------------------------------------------


def test_dual_ascent_raises_the_weight_of_what_fell():
    running = figures(prompt=(1.0, 3.0, 0.5), identity=(0.6, 0.8, 0.1))  # losses 4 and 2, in spreads
    assert dual_level(running, ROLES) == pytest.approx(0.02 * (4 - 2))
    later = replace(running, level=0.1)
    assert dual_level(later, ROLES) == pytest.approx(0.98 * 0.1 + 0.04)


@pytest.mark.parametrize(("mean", "level"), [(-1000.0, 0.25), (1000.0, -0.25)])
def test_the_level_of_dual_ascent_is_bounded(mean: float, level: float):
    identity = (-1000.0, 0.0, 1.0) if mean > 0 else (0.0, 0.0, 1.0)
    prompt = (mean, max(mean, 0.0), 1.0)
    assert dual_level(figures(prompt=prompt, identity=identity), ROLES) == level


def test_proportional_weights_are_those_of_the_nash_product():
    """w_P : w_I = S_P / (m_P - bad_P) : S_I / (m_I - bad_I) = .2 / .4 : .1 / .6 = 3 : 1 from equal weights."""
    running = figures(prompt=(0.5, 9, 0.2), identity=(0.7, 9, 0.1))
    calibrations = {"prompt": Calibration(0.1, 1), "identity": Calibration(0.1, 1)}
    shift = proportional_shift(running, ROLES, calibrations)
    assert shift == pytest.approx(math.log(3))
    weights = shifted(torch.tensor([0.5, 0.3], dtype=torch.float64), shift)
    assert weights.tolist() == pytest.approx([0.75, 0.9 / 1.6])  # .3 : .7 times 3 : 1


def test_balanced_weights_stay_in_their_range():
    weights = torch.tensor([0.0, 0.5, 1.0])
    assert shifted(weights, 0.0).tolist() == pytest.approx([0.2, 0.5, 0.8])
    assert shifted(weights, 50.0).tolist() == pytest.approx([0.2, 0.8, 0.8])


def test_a_reward_at_its_worst_gets_the_highest_weight():
    calibrations = {"prompt": Calibration(0.5, 1), "identity": Calibration(0, 1)}
    running = figures(prompt=(0.4, 1, 0.1), identity=(0.5, 1, 0.1))  # the prompt is below bad
    assert shifted(torch.tensor(0.5), proportional_shift(running, ROLES, calibrations)).item() == pytest.approx(0.8)


def test_a_role_with_several_rewards_counts_as_their_mean():
    roles = {"prompt": "prompt", "face": "identity", "body": "identity", "look": "quality"}
    running = figures(prompt=(0.0, 1.0, 1.0), face=(0.0, 4.0, 1.0), body=(0.0, 0.0, 1.0), look=(0.0, 99.0, 1.0))
    assert dual_level(running, roles) == pytest.approx(0.02 * (1 - 2))


def test_before_anything_is_scored_the_weights_stay():
    assert dual_level(RunningFigures(), ROLES) == 0
    assert proportional_shift(RunningFigures(), ROLES, {}) == 0
    flat = figures(prompt=(0.0, 1.0, 0.0), identity=(0.0, 1.0, 0.0))  # no group has ever had a spread
    assert dual_level(flat, ROLES) == 0
