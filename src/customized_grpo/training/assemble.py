"""From a configuration to the parts of a run: policy, samples, rewards, directory, trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from customized_grpo.calibration.file import CALIBRATION, as_text
from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.run.access import check_access
from customized_grpo.run.base_adapter import base_adapter_file, check_own_base_adapter
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.follower import FollowedDirectory, RunFiles
from customized_grpo.run.trackers import Trackers
from customized_grpo.runtime.distributed import Processes
from customized_grpo.sharing.card import write_own_card
from customized_grpo.training.calibrate import measure_missing
from customized_grpo.training.evaluation import HeldOut, evaluation_sigmas
from customized_grpo.training.kept_calibrations import kept_calibrations
from customized_grpo.training.samples import own_samples, sample_problems
from customized_grpo.training.trainer import Trainer


def add_adapter(policy: Policy, config: RunConfig) -> None:
    """Add the adapter that a run begins with. Raises UsageError if the model has no such layers."""
    adapter = config.adapter
    policy.add_adapter(adapter.rank, adapter.alpha, adapter.targets, seed=config.seed, share_qkv=adapter.share_qkv)


def load_rewards(config: RunConfig) -> dict[str, Reward]:
    """The trained rewards by their keys."""
    device = torch.device(config.device)
    return {key: reward.make(device) for key, reward in config.trained().items()}


def load_metrics(config: RunConfig, rewards: dict[str, Reward]) -> dict[str, Reward]:
    """What held-out cases are scored with: the rewards themselves and the metrics of `evaluation.metrics`.

    A metric with the settings of a trained reward shares its model, unless it is remote: a remote reward counts the
    images that it could not score in training.
    """
    device = torch.device(config.device)
    loaded = [(reward.as_metric(), rewards[key]) for key, reward in config.trained().items() if not reward.remote]
    metrics = {}
    for metric in config.evaluation.metrics:
        settings = config.resolve(metric)
        shared = next((reward for known, reward in loaded if known == settings), None)
        metrics[str(metric)] = settings.make(device) if shared is None else shared
    return {f"{key}_reward": reward for key, reward in rewards.items()} | metrics


def _process_problems(config: RunConfig, count: int, samples: Sequence[Sample], held_out: int) -> Iterator[str]:
    """What cannot be divided among `count` processes, one line each."""
    prompts = config.groups.prompts
    if prompts < count:
        yield (
            f"groups.prompts={prompts} leaves some of the {count} processes without a group; set at least "
            f"groups.prompts={count}"
        )
    if not config.model.shard:
        return
    # Every forward pass gathers the sharded weights: a process with more passes than the others would wait forever.
    if count == 1:
        yield "model.shard=true needs several processes, and there is one; start them with torchrun"
    if prompts % count:
        yield f"groups.prompts={prompts} is not a multiple of {count} processes, as model.shard=true needs it"
    if config.evaluation.every and held_out % count:
        yield (
            f"data.held_out_samples: {held_out} cases are not a multiple of {count} processes, as model.shard=true "
            "needs it"
        )
    references = {len(sample.references) for sample in samples}
    if len(references) > 1:
        yield (
            f"samples have from {min(references)} to {max(references)} references; model.shard=true needs the same "
            "number for all"
        )


def assemble(config: RunConfig, *, resume: bool = False) -> Trainer:
    """The trainer of a run, ready for `train`.

    Whatever is wrong is raised as an InputError: problems of the folder and the data before a model is loaded, and
    everything else before the folder is made.
    """
    processes = Processes(config.device)
    if processes.main:
        check_access(config, resume=resume)
        if resume:
            check_own_base_adapter(config.model, Path(config.output))
    Trackers.check(config.tracking)
    train, held_out, known = own_samples(config, resume=resume, check=processes.main)
    problems = [
        *sample_problems(config, train, held_out),
        *_process_problems(config, processes.count, [*train, *held_out], len(held_out)),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    processes.check_data([(sample.id, sample.subject, sample.prompt) for sample in (*train, *held_out)])
    kept = kept_calibrations(config, resume=resume)
    local = config.model_copy(update={"device": str(processes.device)})  # this process's own GPU
    rewards = load_rewards(local)  # first, because a generator takes minutes and a reward's path may be wrong
    metrics = load_metrics(local, rewards)
    policy = load_policy(config.model, local.device, shard=config.model.shard)
    policy.sigmas(config.sampling.num_steps, config.sampling.shift)  # refuses a schedule before the folder is made
    evaluation_sigmas(policy, config)
    add_adapter(policy, config)
    if config.model.shard:
        policy.shard()
    calibrations = {}
    if kept is not None:
        calibrations = measure_missing(config, kept, [*train, *held_out], rewards, policy, processes)
    directory: RunFiles = FollowedDirectory(config)
    if processes.main:
        files = base_adapter_file(config.model) | ({CALIBRATION: as_text(calibrations)} if calibrations else {})
        directory = RunDirectory(config, resume=resume, own_samples=known, files=files, describe=write_own_card)
    scales = {key: calibration.scale() for key, calibration in calibrations.items()}
    roles = {key: str(reward.role) for key, reward in config.rewards.items()}
    batch, size = config.groups.rollout_batch, config.evaluation_size
    evaluation = HeldOut(held_out, metrics, batch, processes, size, roles, scales)
    return Trainer(config, policy, rewards, train, evaluation, directory, processes, scales)
