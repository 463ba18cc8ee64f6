"""`customized-grpo probe`: which denoising steps decide which reward, for a given model; weights fitted to that."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from customized_grpo.algorithm import step_gradient_factor, step_progress
from customized_grpo.analysis.intervals import Estimate, estimate
from customized_grpo.analysis.probe_fit import (
    Fit,
    Shares,
    fit_weights,
    kind_of_profile,
    obstacle,
    prompt_shares,
    verdict,
)
from customized_grpo.analysis.probe_plot import draw_probe
from customized_grpo.analysis.probe_steps import Probe, Profile
from customized_grpo.assemble import load_metrics, load_policy, load_rewards, load_samples, sampling_settings
from customized_grpo.config import ConfigError, RunConfig, parse_metric
from customized_grpo.critters.weights import BUILT_IN
from customized_grpo.data import Sample
from customized_grpo.outputs import check_folder
from customized_grpo.plan import Plan
from customized_grpo.policies.adapter_file import find_adapter
from customized_grpo.policies.flux_kontext import LORA_TARGETS, FluxKontextPolicy
from customized_grpo.rollout import Sampler
from customized_grpo.run_directory import SamplingSettings, write_text

ORACLES = ("oracle_identity", "oracle_prompt")  # the truth about critters: a reward may be fooled
REPORT, PICTURE, SCHEDULE = "probe.json", "probe.png", "weighting.yaml"


def run_probe(config: RunConfig, adapter: Path | None, *, prompts: int, draws: int, output: Path | None) -> None:
    """Probe the configured model, with a trained adapter or a fresh one; print, and write files into `output`.

    Raises ConfigError for too few training samples; ValueError for an output that holds a probe already, an adapter
    that is not there, or a trained reward that cannot score anything.
    """
    if output is not None:
        if (output / REPORT).exists():
            raise ValueError(f"{output / REPORT} exists; choose another folder with --output")
        check_folder(output)
    samples = choose(load_samples(config)[0], prompts)
    policy = _policy(config, adapter)
    figures = load_metrics(_with_oracles(config), load_rewards(config))
    sigmas = policy.sigmas(config.sampling.num_steps, config.sampling.shift)
    sampler = Sampler(sigmas, config.noise.dynamics, config.noise.level, config.groups.rollout_batch)
    profile = Probe(policy, sampler, samples, figures, draws, config.seed).measure()
    findings = Findings.of(config, samples, sigmas, profile)
    title = f"{prompts} prompts, {draws} draws each, {config.noise.dynamics} noise of level {config.noise.level:g}"
    print(f"\nNoise at one step only: {title}\n\n{findings.text()}", end="")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        run = {"prompts": prompts, "draws": draws, "adapter": None if adapter is None else str(adapter)}
        report = {**run, **findings.as_dict(), "config": config.model_dump(mode="json")}
        if findings.fit is not None:
            write_text(output / SCHEDULE, findings.snippet(findings.fit))
        draw_probe(findings, title, output / PICTURE)
        write_text(output / REPORT, json.dumps(report, indent=2) + "\n")  # last: where it is, a probe is finished
        print(f"\nfiles: {output}")


def choose(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples in order, showing as many subjects as there are: one of each, then a second of each, ...

    Raises ConfigError where there are fewer samples.
    """
    if len(samples) < count:
        raise ConfigError(f"{len(samples)} training samples cannot give {count} prompts; use --prompts {len(samples)}")
    shown: Counter[str] = Counter()
    order = []
    for index, sample in enumerate(samples):
        order.append((shown[sample.subject], index))
        shown[sample.subject] += 1
    return [samples[index] for _, index in sorted(order)[:count]]


def _policy(config: RunConfig, adapter: Path | None) -> FluxKontextPolicy:
    """The generator with the adapter of a folder, or with a fresh one as `train` would add it."""
    folder = None if adapter is None else find_adapter(adapter)
    policy = load_policy(config)
    if folder is None:
        targets = LORA_TARGETS if config.adapter.targets is None else config.adapter.targets
        policy.add_adapter(config.adapter.rank, config.adapter.alpha, targets, seed=config.seed)
        return policy
    policy.load_adapter(folder)
    trained = SamplingSettings.read(folder)
    if trained is not None:
        pairs = zip(asdict(trained).items(), asdict(sampling_settings(config)).values(), strict=True)
        for (name, then), now in pairs:
            if then != now:
                print(f"note: the adapter was trained with {name} {then} and is probed with {now}", file=sys.stderr)
    return policy


def _with_oracles(config: RunConfig) -> RunConfig:
    """On critters, the oracle's figures are measured whatever the recipe says."""
    metrics = config.evaluation.metrics
    if config.data.source == BUILT_IN:
        named = {metric.name for metric in metrics}
        metrics = (*(parse_metric(name) for name in ORACLES if name not in named), *metrics)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metrics": metrics})})


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
