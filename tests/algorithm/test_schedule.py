"""Noise grids, progress and windows of stochastic steps."""

import pytest
import torch

from customized_grpo.algorithm import (
    progress,
    progress_from_sigma,
    scattered_steps,
    sigma_schedule,
    step_progress,
    stochastic_steps,
)


@pytest.mark.parametrize("num_steps", [25, 16, 10])
def test_grid_matches_the_reference(reference, num_steps):
    expected = torch.tensor(reference["sigmas"][f"T{num_steps}_shift3"], dtype=torch.float64)
    torch.testing.assert_close(sigma_schedule(num_steps, 3.0), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.43, 1.57])
def test_grid_starts_at_exactly_one_for_shifts_where_float32_does_not(shift):
    s = torch.linspace(1, 0, 26, dtype=torch.float32)
    assert (shift * s / (1 + (shift - 1) * s))[0] != 1  # the trap is real
    sigmas = sigma_schedule(25, shift)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == 1
    assert sigmas[-1] == 0


def test_grid_falls_from_one_to_zero_at_every_shift():
    for percent in range(5, 1200, 3):  # .05 and others miss 1 in float64 too, unless the ends are set explicitly
        shift = percent / 100
        sigmas = sigma_schedule(25, shift)
        assert (sigmas[0], sigmas[-1]) == (1, 0), shift
        assert (sigmas.diff() < 0).all(), shift


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 3.0), (25, 0.0), (25, -1.0), (25, float("nan"))])
def test_grid_refuses_invalid_settings(num_steps, shift):
    with pytest.raises(ValueError, match=r"num_steps is 0|shift is"):
        sigma_schedule(num_steps, shift)


def test_progress_is_the_fraction_of_steps_done():
    assert progress(6, 25) == 0.24  # 6 / 25
    assert progress(torch.tensor([0, 10, 22]), 25).tolist() == [0.0, 0.4, 0.88]
    assert progress(torch.tensor([-1, 26]), 25).tolist() == [0.0, 1.0]  # clamped


def test_progress_from_sigma_gives_the_authors_noise_levels():
    # u = 1 - sigma / (3 - 2 sigma): 19/21 -> 1 - 19/25 = .24; 9/11 -> 1 - 9/15 = .40; 9/31 -> 1 - 9/75 = .88
    levels = torch.tensor([1, 19 / 21, 9 / 11, 9 / 31, 0], dtype=torch.float64)
    expected = torch.tensor([0, 0.24, 0.40, 0.88, 1], dtype=torch.float64)
    torch.testing.assert_close(progress_from_sigma(levels), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_steps", [10, 16, 25, 50])
def test_both_readings_agree_at_shift_3_only(num_steps):
    steps = range(num_steps - 1)
    by_step = step_progress(steps, sigma_schedule(num_steps, 3.0), "step")
    torch.testing.assert_close(
        step_progress(steps, sigma_schedule(num_steps, 3.0), "sigma"), by_step, atol=1e-12, rtol=0
    )
    by_sigma = step_progress(steps, sigma_schedule(num_steps, 1.5), "sigma")
    assert (by_sigma[1:] > by_step[1:] + 0.01).all()  # with smaller shift the noise falls earlier


@pytest.mark.parametrize("reading", ["step", "sigma"])
def test_progress_follows_the_true_step_not_the_position(reading):
    sigmas = sigma_schedule(25, 3.0)
    steps = [17, 3, 22, 0, 9]
    expected = torch.tensor([0.68, 0.12, 0.88, 0.0, 0.36], dtype=torch.float64)  # t / 25
    torch.testing.assert_close(step_progress(steps, sigmas, reading), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [[24], [-1], [0, 25], []])
def test_progress_refuses_steps_that_are_not_trained(steps):
    with pytest.raises(ValueError, match="cannot be trained; use true indices, 0 to 23"):
        step_progress(steps, sigma_schedule(25, 3.0))


def test_progress_refuses_an_unknown_reading():
    with pytest.raises(ValueError, match="use 'step' or 'sigma'"):
        step_progress([0], sigma_schedule(25, 3.0), "time")  # pyright: ignore[reportArgumentType]


def test_all_steps_but_the_last_are_stochastic():
    assert stochastic_steps("all", 25) == tuple(range(24))
    assert stochastic_steps("all", 25, first=2, last=4) == (2, 3, 4)


def test_random_windows_fill_their_range_evenly():
    generator = torch.Generator().manual_seed(0)
    windows = [stochastic_steps("random", 10, 3, first=1, last=6, generator=generator) for _ in range(2000)]
    counts = {window: windows.count(window) for window in set(windows)}
    # Starts 1 to 4, 500 expected each; the standard deviation of a count is sqrt(2000 x .25 x .75) = 19.
    assert set(counts) == {(1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 6)}
    assert all(abs(count - 500) < 80 for count in counts.values()), counts


def test_random_windows_repeat_with_their_seed():
    def draw(seed: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        return [stochastic_steps("random", 25, 2, generator=generator) for _ in range(20)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_scattered_steps_are_every_choice_in_every_order():
    generator = torch.Generator().manual_seed(0)
    draws = [scattered_steps(10, 2, first=1, last=3, generator=generator) for _ in range(1200)]
    counts = {draw: draws.count(draw) for draw in set(draws)}
    # Six ordered pairs, 200 expected each, with a standard deviation of sqrt(1200 x 5/36) = 13.
    assert set(counts) == {(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)}
    assert all(abs(count - 200) < 55 for count in counts.values()), counts
    window = stochastic_steps("scattered", 25, 14, generator=generator)
    assert list(window) == sorted(set(window))
    assert len(window) == 14
    assert stochastic_steps("scattered", 5, 4, generator=generator) == (0, 1, 2, 3)


def test_sliding_window_moves_with_the_updates_and_wraps():
    starts = [stochastic_steps("sliding", 6, 3, iteration=i)[0] for i in range(7)]
    assert starts == [0, 1, 2, 0, 1, 2, 0]  # windows of 3 in steps 0 to 4
    slow = [stochastic_steps("sliding", 10, 2, iteration=i, every=2, stride=2, first=1) for i in range(10)]
    # Starts 1 to 7 are 7 places: 0, 2, 4, 6, then 8 % 7 = 1; each kept for two updates.
    assert [window[0] for window in slow] == [1, 1, 3, 3, 5, 5, 7, 7, 2, 2]
    assert slow[6] == (7, 8)


def test_fixed_window():
    assert stochastic_steps("fixed", 10, 2, start=4) == (4, 5)
    assert stochastic_steps("fixed", 10, 2, first=3) == (3, 4)


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("all", {"last": 9}, "not within 0..8; the last step is always ODE"),
        ("all", {"first": 5, "last": 4}, "5..4"),
        ("random", {"size": 3}, "without a generator"),
        ("random", {}, "window size is None"),
        ("scattered", {"size": 3}, "without a generator"),
        ("scattered", {"size": 10, "generator": torch.Generator()}, "steps 0..8 hold 1 to 9"),
        ("sliding", {"size": 10}, "window size is 10; steps 0..8 hold 1 to 9"),
        ("sliding", {"size": 2, "every": 0}, "every 0"),
        ("fixed", {"size": 2, "start": 8}, "window start is 8; 2 steps within 0..8 start at 0 to 7"),
        ("fixed", {"size": 2, "first": 3, "start": 2}, "window start is 2"),
        ("window", {"size": 2}, "window strategy is 'window'"),
    ],
)
def test_windows_outside_the_trainable_steps_are_refused(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        stochastic_steps(strategy, 10, **options)
