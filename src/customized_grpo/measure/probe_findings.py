"""What a probe finds, step by step: tables, a fitted schedule, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from customized_grpo.algorithm import step_gradient_factor, step_progress
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.measure.intervals import Estimate, estimate
from customized_grpo.measure.probe_fit import (
    Fit,
    Shares,
    fit_weights,
    kind_of_profile,
    obstacle,
    prompt_shares,
    verdict,
)
from customized_grpo.measure.probe_steps import Profile
from customized_grpo.training.plan import Plan

ORACLES = ("oracle_identity", "oracle_prompt")  # the truth about critters: a reward may be fooled


@dataclass(frozen=True)
class Findings:
    """What is said about each of the steps 0 to T - 2; lists are in the order of the steps."""

    sigmas: list[float]
    progress: list[float]  # in [0, 1], as the configured weights read it
    spreads: dict[str, list[Estimate]]  # by figure: within-prompt spread, mean over prompts
    gradient_factors: list[float]  # |d mean / d velocity| / std
    gradient_norms: list[Estimate]  # norm of d log_prob / d adapter, mean over prompts
    present: list[float]  # prompt weights of the configuration
    reading: str  # of progress, as in the configuration
    fit: Fit | None
    obstacle: str | None  # why there is no fit
    truth: Shares | None  # the shares by the oracle instead of the rewards; None but on critters

    @classmethod
    def of(cls, config: RunConfig, samples: Sequence[Sample], sigmas: Tensor, profile: Profile) -> Findings:
        """From the figures that could score the samples; others, such as an oracle on photographs, are left out."""
        scored = {name: spreads for name, spreads in profile.spreads.items() if not _silent(spreads)}
        subjects = [sample.subject for sample in samples]
        steps = range(len(sigmas) - 2)
        progress = step_progress(steps, sigmas, config.weighting.progress)
        prompt, identity = scored["prompt_reward"], scored["identity_reward"]
        hindrance = obstacle(prompt, identity)
        noise = config.noise
        factors = step_gradient_factor(noise.dynamics, sigmas[:-2], sigmas[1:-1], noise.level, sigmas[1])
        return cls(
            sigmas=sigmas[:-2].tolist(),
            progress=progress.tolist(),
            spreads={name: [estimate(step, subjects) for step in spreads] for name, spreads in scored.items()},
            gradient_factors=factors.tolist(),
            gradient_norms=[estimate(step, subjects[: len(step)]) for step in profile.gradient_norms],
            present=Plan(config, samples, sigmas).prompt_weight(steps).tolist(),
            reading=config.weighting.progress,
            fit=None if hindrance else fit_weights(prompt_shares(prompt, identity, subjects), progress),
            obstacle=hindrance,
            truth=_shares_by_oracle(scored, subjects),
        )

    def fitted(self) -> list[float] | None:
        """Prompt weights of the fitted schedule."""
        if self.fit is None:
            return None
        return self.fit.weights.prompt_weight(torch.tensor(self.progress, dtype=torch.float64)).tolist()

    def snippet(self, fit: Fit) -> str:
        """The fitted schedule as the section `weighting` of a recipe, with its verdict as a comment."""
        comment = textwrap.fill(verdict(fit), 100, initial_indent="# ", subsequent_indent="# ")
        return f"{comment}\n{yaml.safe_dump({'weighting': fit.section(self.reading)}, sort_keys=False)}"

    def text(self) -> str:
        """Both tables and the schedule, as printed."""
        head = {"step": [str(step) for step in range(len(self.sigmas))], "sigma": _fixed(self.sigmas)}
        spreads = {name.replace("_", " "): [str(e) for e in of] for name, of in self.spreads.items()}
        pull = {
            "gradient factor": [f"{value:.3g}" for value in self.gradient_factors],
            "gradient norm": [_short(e) for e in self.gradient_norms],
        }
        weights = {"present weight": _fixed(self.present)}
        end = f"No schedule: {self.obstacle}.\n"
        if self.fit is not None:
            shares = [str(each) for each in self.fit.shares.estimates()]
            weights = {"prompt share": shares, "fitted weight": _fixed(self.fitted() or []), **weights}
            end = self.snippet(self.fit)
        if self.fit is not None and self.truth is not None:
            end = f"{self._compared(self.fit, self.truth)}\n\n{end}"
        return "\n".join(
            [
                "How far noise at a step moves each figure: spread within a prompt, mean [95 % interval]",
                _table({**head, "progress": _fixed(self.progress), **spreads}),
                "How strongly a step pulls on the update, and what the prompt weighs there",
                _table({**head, **pull, **weights}),
                end,
            ]
        )

    def _compared(self, fit: Fit, truth: Shares) -> str:
        return (
            f"Prompt share of the earlier half of the steps minus that of the later half: {fit.shares.fall()} by the "
            f"rewards,\n{truth.fall()} by the oracle"
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        shares = None if self.fit is None else self.fit.shares.estimates()
        truth = None if self.truth is None else self.truth.estimates()
        fitted = self.fitted()
        rows = [
            {
                "step": step,
                "sigma": self.sigmas[step],
                "progress": self.progress[step],
                "spread": {name: of[step].as_dict() for name, of in self.spreads.items()},
                "gradient_factor": self.gradient_factors[step],
                "gradient_norm": self.gradient_norms[step].as_dict(),
                "prompt_share": None if shares is None else shares[step].as_dict(),
                "oracle_prompt_share": None if truth is None else truth[step].as_dict(),
                "fitted_weight": None if fitted is None else fitted[step],
                "present_weight": self.present[step],
            }
            for step in range(len(self.sigmas))
        ]
        return {
            "steps": rows,
            "obstacle": self.obstacle,
            "oracle_fall": None if self.truth is None else self.truth.fall().as_dict(),
            "fit": None if self.fit is None else self._fit_as_dict(self.fit),
        }

    def _fit_as_dict(self, fit: Fit) -> dict[str, Any]:
        return {
            "weighting": fit.section(self.reading),
            "fitted_numbers": fit.numbers,
            "residual": fit.residual,
            "constant": fit.constant,
            "constant_residual": fit.constant_residual,
            "standard_error_of_shares": fit.shares.standard_error(),
            "fall": fit.shares.fall().as_dict(),
            "profile": kind_of_profile(fit),
            "verdict": verdict(fit),
        }


def _shares_by_oracle(spreads: Mapping[str, Tensor], subjects: Sequence[str]) -> Shares | None:
    if not set(ORACLES) <= set(spreads):
        return None
    identity, prompt = (spreads[name] for name in ORACLES)
    return None if obstacle(prompt, identity) else prompt_shares(prompt, identity, subjects)


def _silent(spreads: Tensor) -> bool:
    """Whether some step has no prompt with two scored draws."""
    return bool(spreads.isnan().all(dim=1).any())


def _fixed(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _short(of: Estimate) -> str:
    """For figures of any size: three significant digits."""
    return f"{of.mean:.3g} [{of.low:.3g}, {of.high:.3g}]"


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns by heading, in fixed widths."""
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [columns, ["-" * width for width in widths], *zip(*columns.values(), strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
