"""Time-aware weights fitted to a probe: the prompt weight is high at steps that decide more of the prompt reward.

    P_t, I_t   within-prompt spread of the prompt and of the identity reward when step t alone is noisy, each divided
               by its own mean over the steps, so that units do not matter
    p_t        P_t / (P_t + I_t), the prompt's share of step t: .5 if the step decides as much of both rewards as the
               average step

The share is our choice, not the paper's: the prompt weight in [0, 1] that gives credit in proportion to influence. It
knows neither how much a step moves the weights of the network nor which of the two rewards you want more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from customized_grpo.algorithm import TimeAwareWeights
from customized_grpo.calibration.intervals import LEVEL, Estimate, resample

FEWEST_STEPS = 7  # with fewer, even the shortest schedule (four numbers) has no corrected information criterion
RATES = (1.0, 200.0)  # from almost straight to a jump between two steps
BEYOND = 0.05  # how far high and low may lie outside the range of the shares: the data shows no plateau farther out
FEWEST_UNITS = 10  # with fewer, a percentile bootstrap is clearly too narrow: with two, half of all intervals miss
CHANCE = 1.5  # standard errors, root mean square over the steps; chance exceeds this in less than 1 of 50 cases
DIGITS = 3  # of every number in the schedule; residuals are computed from the rounded numbers
LEAST_ERROR = 1e-3  # the rounding: smaller residuals are no reason to prefer one schedule to another

Kind = Literal["falls", "rises", "flat", "uneven"]


@dataclass(frozen=True)
class Shares:
    """Prompt shares of N steps, and their values when the prompts are resampled."""

    values: Tensor  # [N] in [0, 1]
    resampled: Tensor  # [RESAMPLES, N]
    units: int  # number of resampled units
    unit: str  # "prompts", or "subjects" if some subjects have several prompts

    def estimates(self) -> list[Estimate]:
        """Each step's share with its 95 % percentile bootstrap interval over prompts."""
        return [_interval(value, column) for value, column in zip(self.values, self.resampled.T, strict=True)]

    def fall(self) -> Estimate:
        """Mean share of the earlier half of the steps minus that of the later half; a middle step is in neither."""
        return _interval(_fall(self.values), _fall(self.resampled))

    def standard_error(self) -> float:
        """Root mean square of the steps' bootstrap standard errors."""
        return self.resampled.var(dim=0).mean().sqrt().item()


def _fall(shares: Tensor) -> Tensor:
    half = shares.shape[-1] // 2
    return shares[..., :half].mean(dim=-1) - shares[..., -half:].mean(dim=-1)


def _interval(value: Tensor, resampled: Tensor) -> Estimate:
    low, high = np.quantile(resampled.numpy(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value.item(), float(low), float(high))


def obstacle(prompt: Tensor, identity: Tensor) -> str | None:
    """Why no schedule can be fitted to these spreads [N, P], in a sentence; None if one can."""
    if len(prompt) < FEWEST_STEPS:
        return (
            f"{len(prompt)} steps can have noise, and a schedule of up to seven numbers needs {FEWEST_STEPS}; set "
            f"sampling.num_steps to {FEWEST_STEPS + 1} or more"
        )
    for name, spreads in (("prompt", prompt), ("identity", identity)):
        if not (spreads.nanmean(dim=1) > 0).any():
            return f"noise does not change the {name} reward at any step"
    neither = (prompt.nanmean(dim=1) == 0) & (identity.nanmean(dim=1) == 0)
    if neither.any():
        steps = neither.nonzero().flatten().tolist()
        return f"noise at steps {steps} changes neither reward; use more --prompts or --draws"
    return None


def prompt_shares(prompt: Tensor, identity: Tensor, subjects: Sequence[str], seed: int = 0) -> Shares:
    """Shares of the steps from the spreads [N, P] of both rewards; NaN marks a prompt that could not be scored.

    subjects  of the P prompts: resampled as a whole, as in `intervals.estimate`

    Call it only if there is no `obstacle`.
    """
    member, drawn = resample(subjects, seed)
    units = drawn.shape[1]
    times = np.stack([np.bincount(each, minlength=units) for each in drawn])
    counts = torch.from_numpy(times[:, member]).double()  # [RESAMPLES, P]
    values = _share(prompt.nanmean(dim=1), identity.nanmean(dim=1))
    resampled = _share(_weighted_mean(prompt, counts), _weighted_mean(identity, counts))
    # If a reward rarely varies, a resample can miss every prompt in which it does, and then has no share.
    scored = resampled[~resampled.isnan().any(dim=1)]
    return Shares(values, scored, units, "prompts" if units == len(subjects) else "subjects")


def _weighted_mean(spreads: Tensor, counts: Tensor) -> Tensor:
    """Means [RESAMPLES, N] of the scored spreads [N, P], each prompt taken `counts` [RESAMPLES, P] times."""
    return counts @ spreads.nan_to_num().T / (counts @ (~spreads.isnan()).double().T)


def _share(prompt: Tensor, identity: Tensor) -> Tensor:
    prompt, identity = (spread / spread.mean(dim=-1, keepdim=True) for spread in (prompt, identity))
    return prompt / (prompt + identity)


def equal_constant(weights: Tensor, trained: Tensor, prompt: Tensor, identity: Tensor) -> float:
    """The constant prompt weight w, in [0, 1], that divides what training decides as a schedule does.

        w / (1 - w) = (sum c w_t P_t / sum c P_t) / (sum c (1 - w_t) I_t / sum c I_t)

    NaN if the trained steps decide nothing of one reward. A plain mean of the weights counts a step that decides
    nothing as much as one that decides everything.

    weights, trained  [N]: w_t; c_t >= 0, how often a step is trained times how hard it pulls then
    prompt, identity  [N, P]: spreads of the rewards, in any unit
    """
    p, i = trained * prompt.nanmean(dim=1), trained * identity.nanmean(dim=1)
    kept, left = (weights * p).sum() / p.sum(), ((1 - weights) * i).sum() / i.sum()
    return (kept / (kept + left)).item()


@dataclass(frozen=True)
class Fit:
    """The schedule nearest to the shares, and how near: root mean square residuals over the steps."""

    shares: Shares
    weights: TimeAwareWeights
    numbers: int  # how many were fitted; the others affect no step
    residual: float
    constant: float  # the best constant weight, the mean share
    constant_residual: float

    def section(self, progress: str) -> dict[str, str | float]:
        """The configuration's section `weighting`, for that kind of progress."""
        return {"kind": "tdw", "progress": progress, **asdict(self.weights)}


def fit_weights(shares: Shares, progress: Tensor) -> Fit:
    """Least squares over all seven numbers of `TimeAwareWeights`; progress [N] ascends, N >= FEWEST_STEPS.

    Moving `start` or `end` between two steps changes nothing, so every gap between steps is tried, and for each
    combination scipy.optimize.least_squares finds the other numbers within bounds. A phase must improve the fit by
    more than its numbers would by chance: the schedule with the lowest AICc wins (Hurvich and Tsai, Biometrika 76,
    1989), N ln(mean square) + 2 k N / (N - k - 1), where k counts the fitted numbers and the error's size. If the
    shares rise, high < low.
    """
    count = len(progress)

    def criterion(fit: Fit) -> float:
        k = fit.numbers + 1
        penalty = 2 * k * count / (count - k - 1) if count > k + 1 else math.inf
        return count * math.log(fit.residual**2 + LEAST_ERROR**2) + penalty

    return min((_fit(shares, progress, *phases) for phases in _phases(progress)), key=criterion)


def _phases(progress: Tensor) -> Iterator[tuple[float, float, int]]:
    """(start, end, steps in the final phase) of all candidates.

    At most half of the steps are held, and none, or two to a third of them, are in the final phase. Boundaries lie
    halfway between two steps. Without a final phase `end` is the published one, or 1 if a step would reach that.
    """
    u, count = progress.tolist(), len(progress)
    published = TimeAwareWeights()
    never = 1.0 if published.in_final_phase(progress).any() else published.end
    for held in range(count // 2 + 1):
        start = 0.0 if held == 0 else round((u[held - 1] + u[held]) / 2, DIGITS)
        yield start, never, 0
        for final in range(2, count // 3 + 1):
            yield start, round((u[-final - 1] + u[-final]) / 2, DIGITS), final


def _fit(shares: Shares, progress: Tensor, start: float, end: float, final_steps: int) -> Fit:
    """The best schedule with these phases; the final weight is the mean share of its steps."""
    values = shares.values
    before = len(values) - final_steps
    final = TimeAwareWeights().final if final_steps == 0 else round(values[before:].mean().item(), DIGITS)
    target, u = values[:before], progress[:before]

    def schedule(high: float, low: float, centre: float, rate: float) -> TimeAwareWeights:
        return TimeAwareWeights(high, low, final, start, centre, end, rate)

    least, most = max(target.min().item() - BEYOND, 0.0), min(target.max().item() + BEYOND, 1.0)
    third = before // 3
    guess = np.clip([target[:third].mean().item(), target[-third:].mean().item()], least + 1e-4, most - 1e-4)
    solutions = [
        least_squares(
            lambda x: (schedule(*x).prompt_weight(u) - target).numpy(),
            x0=(*guess, start + (end - start) * part, 20.0),
            bounds=((least, least, start, RATES[0]), (most, most, end, RATES[1])),
            x_scale=(0.1, 0.1, 0.1, 10.0),
        )
        for part in (0.25, 0.6)  # initial guesses of where the weights fall
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    weights = schedule(*(round(float(x), DIGITS) for x in best.x))
    numbers = 4 + (start > 0) + (2 if final_steps else 0)
    constant = values.mean().item()
    residual = _rms(weights.prompt_weight(progress) - values)
    return Fit(shares, weights, numbers, residual, constant, _rms(constant - values))


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def kind_of_profile(fit: Fit) -> Kind:
    """How the shares change over the steps, as far as the probed prompts can tell."""
    fall = fit.shares.fall()
    if fall.low > 0:
        return "falls"
    if fall.high < 0:
        return "rises"
    return "flat" if fit.constant_residual <= CHANCE * fit.shares.standard_error() else "uneven"


def verdict(fit: Fit) -> str:
    """A few sentences: whether the profile has TDW's shape, and how well the schedule describes it."""
    words: dict[Kind, str] = {
        "falls": "The prompt's share of what a step decides falls along the steps, as TDW assumes.",
        "rises": "Reversed: early steps decide more of the identity, late steps more of the prompt. The published "
        "schedule, which falls, would give each reward its weight at the steps that decide it least; the fitted one "
        "follows the shares.",
        "flat": "Flat: the shares differ no more than chance between prompts explains. A constant weight fits as "
        "well (kind: constant); how high it should be, the probe cannot tell, and the fitted curve means nothing.",
        "uneven": "Uneven, but neither falling nor rising: the shares differ by more than chance, but the early half "
        "does not differ from the late half. TDW's shape does not describe that; look at the plot before using the "
        "fitted curve.",
    }
    uncertainty = fit.shares.standard_error()
    numbers = (
        f"Share of the earlier half minus that of the later half: {fit.shares.fall()}. Root mean square residual over "
        f"{len(fit.shares.values)} steps: {fit.residual:.3f} for the fitted schedule ({fit.numbers} numbers), "
        f"{fit.constant_residual:.3f} for the best constant; the standard error of the shares is {uncertainty:.3f}."
    )
    rough = fit.residual > CHANCE * uncertainty
    return f"{_caution(fit.shares)}{words[kind_of_profile(fit)]} {numbers}" + (
        " The schedule misses the shares by more than chance explains: it is a rough description." if rough else ""
    )


def _caution(shares: Shares) -> str:
    """Precedes a verdict on so few prompts that intervals are too narrow; empty if there are enough."""
    if shares.units >= FEWEST_UNITS:
        return ""
    # If subjects have several prompts, every subject of the list is already included.
    more = f"--prompts {FEWEST_UNITS} or more" if shares.unit == "prompts" else f"samples of {FEWEST_UNITS} or more"
    return f"Only {shares.units} {shares.unit}, too few for a verdict: use {more}. As far as they show: "
