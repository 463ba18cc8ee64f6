"""Time-aware and constant weights."""

from functools import partial

import pytest
import torch

from customized_grpo.algorithm import (
    WEIGHTINGS,
    ConstantWeights,
    TimeAwareWeights,
    progress,
    sigma_schedule,
    step_progress,
)

near = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


@pytest.fixture
def table(reference) -> torch.Tensor:
    return torch.tensor(reference["tdw_T25_w_prompt"], dtype=torch.float64)


def test_defaults_are_the_authors_table_at_25_steps(table):
    weights = TimeAwareWeights().prompt_weight(progress(torch.arange(25), 25))
    near(weights, table)
    assert weights[:6].tolist() == [0.7] * 6  # exactly: not the limit of a sigmoid
    assert weights[22:].tolist() == [0.5] * 3


@pytest.mark.parametrize("reading", ["step", "sigma"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_permuted_steps_keep_the_weights_of_their_true_steps(table, reading, dtype):
    # A diffusers scheduler gives float32; steps 6 and 22 are on the edge of a phase.
    steps = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    u = step_progress(steps, sigma_schedule(25, 3.0).to(dtype), reading)
    near(TimeAwareWeights().prompt_weight(u), table[steps])


def test_phases_begin_at_their_step_despite_rounding():
    weights = TimeAwareWeights().prompt_weight(torch.tensor([0.24, 0.88], dtype=torch.float64) - 1e-7)
    # .3 + .4 sigmoid(-20 (.24 - .40)) = .3 + .4 x .960834 = .684334
    near(weights, torch.tensor([0.684334, 0.5], dtype=torch.float64))


def test_sigma_reading_keeps_the_noise_levels_at_another_shift():
    sigmas = sigma_schedule(40, 1.5)
    steps = torch.arange(39)
    weights = TimeAwareWeights().prompt_weight(step_progress(steps, sigmas, "sigma"))
    levels = sigmas[:-2]
    assert (weights[levels > 0.905] == 0.7).all()
    assert (weights[levels < 0.290] == 0.5).all()
    falling = (levels < 0.904) & (levels > 0.291)
    assert (weights[falling & (levels > 0.819)] > 0.5).all()  # crosses .5 at sigma .818
    assert (weights[falling & (levels < 0.818)] < 0.5).all()
    by_step = TimeAwareWeights().prompt_weight(step_progress(steps, sigmas, "step"))
    assert (weights - by_step).abs().max() > 0.1


@pytest.mark.parametrize("num_steps", range(2, 33))
def test_the_final_phase_is_reached_with_17_steps_or_more(num_steps):
    # The last trained step is T - 2: 14/16 = .875 < .88 <= 15/17 = .882.
    u = step_progress(range(num_steps - 1), sigma_schedule(num_steps, 3.0))
    assert bool(TimeAwareWeights().in_final_phase(u).any()) == (num_steps >= 17)


def test_every_constant_has_an_effect():
    weights = TimeAwareWeights(high=0.9, low=0.1, final=0.2, start=0.1, centre=0.5, end=0.75, rate=4.0)
    u = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    # .1 + .8 sigmoid(-4 (.25 - .5)) = .1 + .8 x .731059 = .684847;  at the centre (.9 + .1) / 2
    expected = torch.tensor([0.9, 0.684847, 0.5, 0.2], dtype=torch.float64)
    near(weights.prompt_weight(u), expected)


def test_constant_weight_is_the_same_at_every_step():
    assert ConstantWeights(0.6).prompt_weight(progress(torch.arange(3), 3)).tolist() == [0.6] * 3


def test_weightings_by_name():
    assert WEIGHTINGS["tdw"]().prompt_weight(0.1) == 0.7
    assert WEIGHTINGS["constant"]().prompt_weight(0.1) == 0.5


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"high": 1.2}, r"high is 1\.2"),
        ({"low": -0.1}, r"low is -0\.1"),
        ({"start": 0.5}, r"start 0\.5, centre 0\.4"),
        ({"end": 0.3}, r"end 0\.3"),
        ({"rate": 0.0}, r"rate is 0\.0"),
    ],
)
def test_invalid_constants_are_refused(constants, message):
    with pytest.raises(ValueError, match=message):
        TimeAwareWeights(**constants)


def test_an_invalid_constant_weight_is_refused():
    with pytest.raises(ValueError, match=r"prompt is 1\.5"):
        ConstantWeights(1.5)
