"""From a configuration to the parts of a run: policy, samples, rewards, directory, trainer."""

from __future__ import annotations

from pathlib import Path

import torch

from customized_grpo.config import ConfigError, Metric, Rewards, RunConfig, dump_config
from customized_grpo.critters import samples as critters
from customized_grpo.critters.weights import BUILT_IN, resolve
from customized_grpo.data import Sample, load_list, split_by_subject
from customized_grpo.evaluation import HeldOut
from customized_grpo.policies.flux_kontext import LORA_TARGETS, FluxKontextPolicy
from customized_grpo.rewards import REWARDS, Reward, load_reward
from customized_grpo.run_directory import RunDirectory, SamplingSettings
from customized_grpo.trackers import Trackers
from customized_grpo.trainer import Trainer


def load_policy(config: RunConfig) -> FluxKontextPolicy:
    """The generator without adapter."""
    model = config.model
    return FluxKontextPolicy(
        resolve(model.path, "generator"),
        device=config.device,
        dtype=getattr(torch, model.dtype),
        height=model.height,
        width=model.width,
        guidance=model.guidance,
        max_sequence_length=model.max_sequence_length,
    )


def load_samples(config: RunConfig) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples; held-out ones show other subjects."""
    data = config.data
    if data.source == BUILT_IN:
        train = critters.draw_samples(data.train_samples or 1, critters.TRAINING_CRITTERS, config.seed)
        # The same development cases for every seed, so that runs can be compared.
        held_out = critters.draw_samples(data.held_out_samples, critters.DEVELOPMENT_CRITTERS, 0)
        return train, held_out
    samples = load_list(Path(data.source), None if data.root is None else Path(data.root))
    train, held_out = split_by_subject(samples, data.held_out_share, config.seed)
    train = train[: data.train_samples]
    # Spread over the list, not its head: the head is often one subject.
    every = max(len(held_out) // data.held_out_samples, 1)
    return train, held_out[::every][: data.held_out_samples]


def load_rewards(config: RunConfig) -> dict[str, Reward]:
    """The trained rewards by role."""
    device = torch.device(config.device)
    roles = {"identity": config.rewards.identity, "prompt": config.rewards.prompt}
    return {role: load_reward(r.name, r.model, r.against, device) for role, r in roles.items()}


def load_metrics(config: RunConfig, rewards: dict[str, Reward]) -> dict[str, Reward]:
    """What held-out cases are scored with: the rewards themselves and the metrics of `evaluation.metrics`."""
    device = torch.device(config.device)
    further = {
        str(metric): load_reward(metric.name, encoder_of(metric, config.rewards), metric.against, device)
        for metric in config.evaluation.metrics
    }
    return {f"{role}_reward": reward for role, reward in rewards.items()} | further


def encoder_of(metric: Metric, rewards: Rewards) -> str:
    """The metric's own encoder, or that of the trained reward with an encoder of its kind."""
    kind = REWARDS[metric.name].encoder if metric.name in REWARDS else None
    return metric.model or (rewards.prompt.model if kind == "clip" else rewards.identity.model)


def sampling_settings(config: RunConfig) -> SamplingSettings:
    model = config.model
    return SamplingSettings(
        num_steps=config.sampling.num_steps,
        shift=config.sampling.shift,
        guidance=model.guidance,
        height=model.height,
        width=model.width,
        max_sequence_length=model.max_sequence_length,
    )


def assemble(config: RunConfig, *, resume: bool = False) -> Trainer:
    """Everything that `train` needs; data problems show before a model is loaded or a folder made."""
    RunDirectory.check(Path(config.output), resume=resume)
    Trackers.check(config.tracking)
    train, held_out = load_samples(config)
    if not train:
        raise ConfigError(f"{config.data.source} leaves no sample to train on; lower data.held_out_share")
    if config.evaluation.every and not held_out:
        raise ConfigError(
            f"{config.data.source} leaves no held-out sample to evaluate on; raise data.held_out_share, or set "
            "evaluation.every=0"
        )
    policy = load_policy(config)
    adapter = config.adapter
    targets = LORA_TARGETS if adapter.targets is None else adapter.targets
    policy.add_adapter(adapter.rank, adapter.alpha, targets, seed=config.seed)
    rewards = load_rewards(config)
    metrics = load_metrics(config, rewards)
    directory = RunDirectory(
        Path(config.output), dump_config(config), sampling_settings(config), resume=resume, tracking=config.tracking
    )
    evaluated = HeldOut(held_out, metrics, config.groups.rollout_batch)
    return Trainer(config, policy, rewards, train, evaluated, directory)
