"""`customized-grpo probe`: which denoising steps decide which reward, and a weight schedule fitted to the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.data import Sample
from customized_grpo.data.subsets import subset
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.adapter_places import find_adapter, folder_of
from customized_grpo.files.durable import check_folder, make_folder, write_text
from customized_grpo.measure.probe_findings import ORACLES, Findings
from customized_grpo.measure.probe_plot import draw_probe
from customized_grpo.measure.probe_steps import Probe
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training.assemble import add_adapter, load_metrics, load_rewards
from customized_grpo.training.rollout import Sampler
from customized_grpo.training.samples import load_samples
from customized_grpo.wording import counted

REPORT, PICTURE, SCHEDULE = "probe.json", "probe.png", "weighting.yaml"


def run_probe(config: RunConfig, adapter: Path | None, *, prompts: int, draws: int, output: Path | None) -> None:
    """Probe the configured model, with a trained adapter or a fresh one; print, and write files into `output`.

    Raises ConfigError for too few training samples; UsageError for an output that already holds a probe, or a trained
    reward that cannot score the samples; ModelError for an adapter that is missing.
    """
    if output is not None:
        if (output / REPORT).exists():
            raise UsageError(f"{output / REPORT} exists; choose another folder with --output")
        check_folder(output)
    samples = choose(load_samples(config)[0], prompts)
    policy = _policy(config, adapter)
    metrics = load_metrics(_with_oracles(config), load_rewards(config))
    sigmas = policy.sigmas(config.sampling.num_steps, config.sampling.shift)
    sampler = Sampler(sigmas, config.noise.dynamics, config.noise.level, config.groups.rollout_batch)
    profile = Probe(policy, sampler, samples, metrics, draws, config.seed).measure()
    findings = Findings.of(config, samples, sigmas, profile)
    noise = f"{config.noise.dynamics} noise of level {config.noise.level:g}"
    title = f"{counted(prompts, 'prompt')}, {counted(draws, 'draw')} each, {noise}"
    print(f"\nNoise at one step only: {title}\n\n{findings.text()}", end="")
    if config.objective.kind == "nft":
        print("\nGradient factor and norm are those of log-probabilities, which objective.kind=nft does without.")
    if output is not None:
        make_folder(output)
        run = {"prompts": prompts, "draws": draws, "adapter": None if adapter is None else str(adapter)}
        report = {**run, **findings.as_dict(), "config": config.model_dump(mode="json")}
        if findings.fit is not None:
            write_text(output / SCHEDULE, findings.snippet(findings.fit))
        draw_probe(findings, title, output / PICTURE)
        write_text(output / REPORT, json.dumps(report, indent=2) + "\n")  # last: a folder with it is a finished probe
        print(f"\nfiles: {output}")


def choose(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples, spread over subjects and prompts. Raises ConfigError if there are fewer samples."""
    if len(samples) < count:
        raise ConfigError(f"{len(samples)} training samples cannot give {count} prompts; use --prompts {len(samples)}")
    return subset(samples, count)


def _policy(config: RunConfig, adapter: Path | None) -> Policy:
    """The generator with the adapter from a folder or file, or with a fresh one as `train` would add it."""
    found = None if adapter is None else find_adapter(adapter)
    policy = load_policy(config.model, config.device)
    if found is None:
        add_adapter(policy, config)
        return policy
    policy.load_adapter(found)
    own = SamplingSettings.read(folder_of(found))
    if own is not None:
        probed = asdict(SamplingSettings.of(config))
        for name, value in asdict(own).items():
            if value != probed[name]:
                note = f"note: the adapter comes with {name} {value}, and this configuration has {probed[name]}"
                print(note, file=sys.stderr)
    return policy


def _with_oracles(config: RunConfig) -> RunConfig:
    """On critters the oracle is always measured too, even if the recipe does not list it."""
    metrics = config.evaluation.metrics
    if config.data.source in BUILT_IN:
        listed = {metric.name for metric in metrics}
        metrics = (*(parse_metric(name) for name in ORACLES if name not in listed), *metrics)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metrics": metrics})})
