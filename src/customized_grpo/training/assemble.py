"""From a configuration to the parts of a run: policy, samples, rewards, directory, trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.critters import samples as critters
from customized_grpo.data import Sample, load_data
from customized_grpo.fields import BUILT_IN
from customized_grpo.policies import find_family, load_policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.settings import INSTEAD, IdentitySettings
from customized_grpo.run.access import check_access
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.follower import FollowedDirectory
from customized_grpo.run.trackers import Trackers
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.distributed import Processes
from customized_grpo.sections import Data
from customized_grpo.training.evaluation import HeldOut
from customized_grpo.training.trainer import Trainer


def check_inputs(config: RunConfig) -> None:
    """Raises ValueError where device, model or data are not there; loads no model."""
    usable_device(config.device)
    find_family(config.model)
    load_samples(config)


def read_data(data: Data, held_out_share: float, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples of a source with files, all of them; a share of 0 holds out none."""
    root = None if data.root is None else Path(data.root)
    return load_data(data.source, root=root, class_word=data.class_word, held_out_share=held_out_share, seed=seed)


def load_samples(config: RunConfig) -> tuple[list[Sample], list[Sample]]:
    """(training, held-out) samples; held-out ones show other subjects."""
    data = config.data
    if data.source == BUILT_IN:
        train = critters.draw_samples(data.train_samples or 1, critters.TRAINING_CRITTERS, config.seed)
        # The same development cases for every seed, so that runs can be compared.
        held_out = critters.draw_samples(data.held_out_samples, critters.DEVELOPMENT_CRITTERS, 0)
        return train, held_out
    train, held_out = read_data(data, data.held_out_share, config.seed)
    return _spread(train, data.train_samples or len(train)), _spread(held_out, data.held_out_samples)


def _spread(samples: list[Sample], count: int) -> list[Sample]:
    """`count` of them all over the list, not its head: the head is often one subject."""
    return samples[:: max(len(samples) // count, 1)][:count]


def load_rewards(config: RunConfig) -> dict[str, Reward]:
    """The trained rewards by their keys."""
    device = torch.device(config.device)
    return {key: reward.make(device) for key, reward in config.trained().items()}


def load_metrics(config: RunConfig, rewards: dict[str, Reward]) -> dict[str, Reward]:
    """What held-out cases are scored with: the rewards themselves and the metrics of `evaluation.metrics`.

    A metric that is a trained reward as well shares that one's model; not where it only asks a server, because a
    remote reward counts what it could not score in training.
    """
    device = torch.device(config.device)
    made = [(reward.as_metric(), rewards[key]) for key, reward in config.trained().items() if not reward.remote]
    further = {}
    for metric in config.evaluation.metrics:
        wanted = config.resolve(metric)
        shared = next((reward for known, reward in made if known == wanted), None)
        further[str(metric)] = wanted.make(device) if shared is None else shared
    return {f"{key}_reward": reward for key, reward in rewards.items()} | further


def _process_problems(config: RunConfig, count: int, samples: Sequence[Sample], held_out: int) -> Iterator[str]:
    """What `count` processes cannot divide among themselves."""
    prompts = config.groups.prompts
    if prompts < count:
        yield (
            f"groups.prompts={prompts} leaves some of {count} processes without a group; give each at least one, "
            f"groups.prompts={count}"
        )
    if not config.model.shard:
        return
    # Sharded weights are gathered pass by pass: a process with one pass more than the others would wait for ever.
    if count == 1:
        yield "model.shard=true divides the weights among processes, and there is one; start several with torchrun"
    if prompts % count:
        yield f"groups.prompts={prompts} is no multiple of {count} processes, and model.shard=true needs equal shares"
    if config.evaluation.every and held_out % count:
        yield f"data.held_out_samples: {held_out} cases on {count} processes, and model.shard=true needs equal shares"
    references = {len(sample.references) for sample in samples}
    if len(references) > 1:
        yield f"samples have from {min(references)} to {max(references)} references; model.shard=true needs one number"


def _unscorable_rewards(config: RunConfig, samples: Sequence[Sample]) -> Iterator[str]:
    """The rewards that would stop the run, because too many training samples lack what they look at."""
    for key, reward in config.rewards.items():
        lacking = [what for sample in samples if (what := reward.lacking(sample))]
        if len(lacking) > config.max_unscored * len(samples):
            instead = f", or set rewards.{key}.{INSTEAD[lacking[0]]}" if isinstance(reward, IdentitySettings) else ""
            yield (
                f"rewards.{key} cannot score {len(lacking)} of {len(samples)} training samples, which have no "
                f"{lacking[0]}; list it with them (docs/data.md){instead}"
            )


def assemble(config: RunConfig, *, resume: bool = False) -> Trainer:
    """Everything that `train` needs; data problems show before a model is loaded or a folder made."""
    processes = Processes(config.device)
    if processes.main:
        check_access(config, resume=resume)
    Trackers.check(config.tracking)
    train, held_out = load_samples(config)
    if not train:
        raise ConfigError(f"{config.data.source} leaves no sample to train on; lower data.held_out_share")
    if config.evaluation.every and not held_out:
        raise ConfigError(
            f"{config.data.source} leaves no held-out sample to evaluate on; raise data.held_out_share, or set "
            "evaluation.every=0"
        )
    problems = [
        *_process_problems(config, processes.count, [*train, *held_out], len(held_out)),
        *_unscorable_rewards(config, train),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    placed = config.model_copy(update={"device": str(processes.device)})
    policy = load_policy(config.model, placed.device, shard=config.model.shard)
    policy.add_adapter(config.adapter.rank, config.adapter.alpha, config.adapter.targets, seed=config.seed)
    if config.model.shard:
        policy.shard()
    rewards = load_rewards(placed)
    metrics = load_metrics(placed, rewards)
    directory = RunDirectory(config, resume=resume) if processes.main else FollowedDirectory(config)
    evaluated = HeldOut(held_out, metrics, config.groups.rollout_batch, processes)
    return Trainer(config, policy, rewards, train, evaluated, directory, processes)
