"""The result of a probe, step by step: tables, a fitted schedule, JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from customized_grpo.algorithm import step_gradient_factor, step_progress
from customized_grpo.calibration.intervals import Estimate, estimate
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
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
from customized_grpo.measure.probe_steps import Profile
from customized_grpo.training.plan import Plan

ORACLES = ("oracle_identity", "oracle_prompt")  # exact on critters, while a reward can be fooled


@dataclass(frozen=True)
class Findings:
    """The results for each of the steps 0 to T - 2; lists are in the order of the steps."""

    sigmas: list[float]
    progress: list[float]  # in [0, 1], as the configured weights read it
    spreads: dict[str, list[Estimate]]  # by metric: within-prompt spread, mean over prompts
    gradient_factors: list[float]  # |d mean / d velocity| / std
    gradient_norms: list[Estimate]  # norm of d log_prob / d adapter, mean over prompts
    present: list[float]  # prompt weights of the configuration
    plain_mean: float  # of these, over the steps as often as the run trains them
    acts_like: float | None  # the constant weight of equal influence; None if it cannot be told
    progress_kind: str  # `weighting.progress` of the configuration, or of the fit
    fit: Fit | None
    obstacle: str | None  # why there is no fit
    oracle_shares: Shares | None  # shares by the oracle instead of the rewards; critters only

    @classmethod
    def of(cls, config: RunConfig, samples: Sequence[Sample], sigmas: Tensor, profile: Profile) -> Findings:
        """From the metrics that could score the samples; an oracle on photographs, for example, is left out."""
        scored = {name: spreads for name, spreads in profile.spreads.items() if not _has_unscored_step(spreads)}
        subjects = [sample.subject for sample in samples]
        steps = range(len(sigmas) - 2)
        # Weights by position have no progress of a step; a fitted schedule is for true steps.
        reading = "step" if config.weighting.progress == "position" else config.weighting.progress
        progress = step_progress(steps, sigmas, reading)
        prompt, identity = scored["prompt_reward"], scored["identity_reward"]
        problem = obstacle(prompt, identity)
        noise = config.noise
        factors = step_gradient_factor(noise.dynamics, sigmas[:-2], sigmas[1:-1], noise.level, sigmas[1])
        plan = Plan(config, samples, sigmas)
        present, often = plan.prompt_weight(steps), plan.times_trained()
        like = equal_constant(present, often * plan.pull(steps), prompt, identity)
        return cls(
            sigmas=sigmas[:-2].tolist(),
            progress=progress.tolist(),
            spreads={name: [estimate(step, subjects) for step in spreads] for name, spreads in scored.items()},
            gradient_factors=factors.tolist(),
            gradient_norms=[estimate(step, subjects[: len(step)]) for step in profile.gradient_norms],
            present=present.tolist(),
            plain_mean=((present * often).sum() / often.sum()).item(),
            acts_like=like if math.isfinite(like) else None,
            progress_kind=reading,
            fit=None if problem else fit_weights(prompt_shares(prompt, identity, subjects), progress),
            obstacle=problem,
            oracle_shares=_shares_by_oracle(scored, subjects),
        )

    def fitted(self) -> list[float] | None:
        """Prompt weights of the fitted schedule."""
        if self.fit is None:
            return None
        return self.fit.weights.prompt_weight(torch.tensor(self.progress, dtype=torch.float64)).tolist()

    def snippet(self, fit: Fit) -> str:
        """The fitted schedule as the section `weighting` of a recipe, with its verdict as a comment."""
        comment = textwrap.fill(verdict(fit), 100, initial_indent="# ", subsequent_indent="# ")
        return f"{comment}\n{yaml.safe_dump({'weighting': fit.section(self.progress_kind)}, sort_keys=False)}"

    def text(self) -> str:
        """Both tables and the schedule, as printed."""
        head = {"step": [str(step) for step in range(len(self.sigmas))], "sigma": _fixed(self.sigmas)}
        spreads = {name.replace("_", " "): [str(e) for e in column] for name, column in self.spreads.items()}
        pull = {
            "gradient factor": [f"{value:.3g}" for value in self.gradient_factors],
            "gradient norm": [_short(norm) for norm in self.gradient_norms],
        }
        weights = {"present weight": _fixed(self.present)}
        ending = f"No schedule: {self.obstacle}.\n"
        if self.fit is not None:
            shares = [str(e) for e in self.fit.shares.estimates()]
            weights = {"prompt share": shares, "fitted weight": _fixed(self.fitted() or []), **weights}
            ending = self.snippet(self.fit)
        if self.fit is not None and self.oracle_shares is not None:
            ending = f"{_comparison(self.fit.shares, self.oracle_shares)}\n\n{ending}"
        if self.acts_like is not None:
            ending = (
                f"By how often a step is trained and what it decides, the present weights act like a constant "
                f"{self.acts_like:.3f};\ntheir plain mean is {self.plain_mean:.3f}\n\n{ending}"
            )
        return "\n".join(
            [
                "How much noise at a step moves each metric: spread within a prompt, mean [95 % interval]",
                _table({**head, "progress": _fixed(self.progress), **spreads}),
                "How strongly a step pulls on the update, and the prompt's weight there",
                _table({**head, **pull, **weights}),
                ending,
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        shares = None if self.fit is None else self.fit.shares.estimates()
        by_oracle = None if self.oracle_shares is None else self.oracle_shares.estimates()
        fitted = self.fitted()
        rows = [
            {
                "step": step,
                "sigma": self.sigmas[step],
                "progress": self.progress[step],
                "spread": {name: column[step].as_dict() for name, column in self.spreads.items()},
                "gradient_factor": self.gradient_factors[step],
                "gradient_norm": self.gradient_norms[step].as_dict(),
                "prompt_share": None if shares is None else shares[step].as_dict(),
                "oracle_prompt_share": None if by_oracle is None else by_oracle[step].as_dict(),
                "fitted_weight": None if fitted is None else fitted[step],
                "present_weight": self.present[step],
            }
            for step in range(len(self.sigmas))
        ]
        return {
            "steps": rows,
            "obstacle": self.obstacle,
            "present_mean": self.plain_mean,
            "present_acts_like": self.acts_like,
            "oracle_fall": None if self.oracle_shares is None else self.oracle_shares.fall().as_dict(),
            "fit": None if self.fit is None else self._fit_as_dict(self.fit),
        }

    def _fit_as_dict(self, fit: Fit) -> dict[str, Any]:
        return {
            "weighting": fit.section(self.progress_kind),
            "fitted_numbers": fit.numbers,
            "residual": fit.residual,
            "constant": fit.constant,
            "constant_residual": fit.constant_residual,
            "standard_error_of_shares": fit.shares.standard_error(),
            "fall": fit.shares.fall().as_dict(),
            "profile": kind_of_profile(fit),
            "verdict": verdict(fit),
        }


def _comparison(by_rewards: Shares, by_oracle: Shares) -> str:
    return (
        f"Prompt share of the earlier half of the steps minus that of the later half: {by_rewards.fall()} by the "
        f"rewards,\n{by_oracle.fall()} by the oracle"
    )


def _shares_by_oracle(spreads: Mapping[str, Tensor], subjects: Sequence[str]) -> Shares | None:
    if not set(ORACLES) <= set(spreads):
        return None
    identity, prompt = (spreads[name] for name in ORACLES)
    return None if obstacle(prompt, identity) else prompt_shares(prompt, identity, subjects)


def _has_unscored_step(spreads: Tensor) -> bool:
    """Whether some step has no prompt with two scored draws."""
    return bool(spreads.isnan().all(dim=1).any())


def _fixed(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _short(estimate: Estimate) -> str:
    """Three significant digits, for numbers of any size."""
    return f"{estimate.mean:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns by heading, padded to fixed widths."""
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [columns, ["-" * width for width in widths], *zip(*columns.values(), strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
