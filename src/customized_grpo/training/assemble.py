"""From a configuration to the parts of a run: policy, samples, rewards, directory, trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from customized_grpo.calibration.file import CALIBRATION, as_text
from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.critters import samples as critters
from customized_grpo.data import Sample
from customized_grpo.data.digests import digests
from customized_grpo.data.subsets import fair_order, subset
from customized_grpo.fields import BUILT_IN
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.settings import INSTEAD, IdentitySettings
from customized_grpo.run.access import check_access
from customized_grpo.run.checkpoints import checkpoints_of
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.follower import FollowedDirectory, RunFiles
from customized_grpo.run.own_samples import OWN_SAMPLES, RESTORE, OwnSamples, read_data
from customized_grpo.run.trackers import Trackers
from customized_grpo.runtime.distributed import Processes
from customized_grpo.sections import Data
from customized_grpo.sharing.card import write_own_card
from customized_grpo.training.calibrate import kept_calibrations, measure_missing
from customized_grpo.training.evaluation import HeldOut, evaluation_sigmas
from customized_grpo.training.plan import rule_of
from customized_grpo.training.trainer import Trainer


def load_samples(config: RunConfig) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples of a new run; they show different subjects. Raises DataError or UsageError."""
    data = config.data
    if data.source in BUILT_IN:
        draw = partial(critters.draw_samples, source=data.source)
        train = draw(data.train_samples or 1, critters.TRAINING_CRITTERS, config.seed)
        # The same held-out cases for every seed, so that runs can be compared.
        return train, draw(data.held_out_samples, critters.DEVELOPMENT_CRITTERS, 0)
    train, held_out = _divide(data, config.seed)
    return train, held_out[: data.held_out_samples]


def _divide(data: Data, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples; of those held out all, in an order whose beginning speaks for the whole."""
    train, held_out = read_data(data, data.held_out_share, seed)
    return subset(train, data.train_samples), fair_order(held_out)


def own_samples(
    config: RunConfig, *, resume: bool, check: bool = True
) -> tuple[list[Sample], list[Sample], OwnSamples | None]:
    """(training, held-out) samples of a run, and their digests, which are kept with it (critters have none).

    A resumed run goes on with its own samples, whatever else the data holds now.

    check  compare their content with what the run knew; one process is enough for that

    Raises DataError or UsageError, or DataChangedError if they are no longer what they were.
    """
    data = config.data
    if data.source in BUILT_IN:
        return *load_samples(config), None
    known = OwnSamples.read(Path(config.output)) if resume else None
    if known is None:
        train, held_out = _divide(data, config.seed)
        known = OwnSamples.of(train, held_out) if check else None
        if known is not None and resume and checkpoints_of(Path(config.output)):
            warnings.warn(
                f"the run has no {OWN_SAMPLES}, as older versions left it: whether its data is what it was cannot be "
                "checked, and is recorded from now on",
                stacklevel=2,
            )
    else:
        found = [sample for part in read_data(data, data.held_out_share, config.seed) for sample in part]
        train, held_out = known.pick(found)
        if check:
            names = [*known.train, *known.held_out]
            known.check(digests([*train, *held_out]), names, f"{RESTORE}, or start another run with output=...")
            if data.train_samples is None and (new := len(found) - len(names)):
                message = f"the data holds {new} samples more than the run began with; it goes on without them"
                warnings.warn(message, stacklevel=2)
    return train, held_out[: data.held_out_samples], known


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


def sample_problems(config: RunConfig, train: Sequence[Sample], held_out: Sequence[Sample]) -> Iterator[str]:
    """Why a run cannot train on `train` or evaluate on `held_out`, one line each."""
    if not train:
        yield f"{config.data.source} leaves no sample to train on; lower data.held_out_share"
    if config.evaluation.every and not held_out:
        yield (
            f"{config.data.source} leaves no held-out sample to evaluate on; raise data.held_out_share, or set "
            "evaluation.every=0"
        )
    if rule_of(config).static_weights and config.weighting.kind == "tdw":
        yield f'shaping.rule: "{config.shaping.rule}" needs static weights; add weighting.kind=constant'
    yield from _unscorable_rewards(config, train)


def _unscorable_rewards(config: RunConfig, samples: Sequence[Sample]) -> Iterator[str]:
    """Rewards that cannot score more of the training samples than `max_unscored` allows, one line each."""
    for key, reward in config.rewards.items():
        lacking = [what for sample in samples if (what := reward.lacking(sample))]
        if len(lacking) > config.max_unscored * len(samples):
            instead = f", or set rewards.{key}.{INSTEAD[lacking[0]]}" if isinstance(reward, IdentitySettings) else ""
            yield (
                f"rewards.{key} cannot score {len(lacking)} of {len(samples)} training samples, which have no "
                f"{lacking[0]}; add it to the data (docs/data.md){instead}"
            )


def assemble(config: RunConfig, *, resume: bool = False) -> Trainer:
    """The trainer of a run, ready for `train`.

    Whatever is wrong is raised as an InputError: problems of the folder and the data before a model is loaded, and
    everything else before the folder is made.
    """
    processes = Processes(config.device)
    if processes.main:
        check_access(config, resume=resume)
    Trackers.check(config.tracking)
    train, held_out, known = own_samples(config, resume=resume, check=processes.main)
    problems = [
        *sample_problems(config, train, held_out),
        *_process_problems(config, processes.count, [*train, *held_out], len(held_out)),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
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
    files = {CALIBRATION: as_text(calibrations)} if calibrations else {}
    directory: RunFiles = FollowedDirectory(config)
    if processes.main:
        directory = RunDirectory(config, resume=resume, own_samples=known, files=files, describe=write_own_card)
    scales = {key: calibration.scale() for key, calibration in calibrations.items()}
    roles = {key: str(reward.role) for key, reward in config.rewards.items()}
    batch, size = config.groups.rollout_batch, config.evaluation_size
    evaluation = HeldOut(held_out, metrics, batch, processes, size, roles, scales)
    return Trainer(config, policy, rewards, train, evaluation, directory, processes, scales)
