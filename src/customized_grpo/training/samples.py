"""The samples of a run: those that it trains on, those that it holds out, and why it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from customized_grpo.config import OF_AVERAGE, RunConfig
from customized_grpo.critters import samples as critters
from customized_grpo.data import Sample
from customized_grpo.data.digests import digests
from customized_grpo.data.subsets import fair_order, subset
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.adapter_places import has_trained
from customized_grpo.rewards.settings import INSTEAD, IdentitySettings
from customized_grpo.run.own_samples import OWN_SAMPLES, RESTORE, OwnSamples, read_data
from customized_grpo.sections import Data
from customized_grpo.training.rules import needs_static_weights
from customized_grpo.wording import counted


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
    run = Path(config.output)
    known = OwnSamples.read(run) if resume and has_trained(run) else None
    if known is None:
        train, held_out = _divide(data, config.seed)
        known = OwnSamples.of(train, held_out) if check else None
        if known is not None and resume and has_trained(run):
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
                more = f"the data holds {counted(new, 'sample')} more than the run began with"
                warnings.warn(f"{more}; it goes on without what is new", stacklevel=2)
    return train, held_out[: data.held_out_samples], known


def sample_problems(config: RunConfig, train: Sequence[Sample], held_out: Sequence[Sample]) -> Iterator[str]:
    """Why a run cannot train on `train` or evaluate on `held_out`, one line each."""
    if not train:
        yield f"{config.data.source} leaves no sample to train on; lower data.held_out_share"
    if config.evaluation.every and not held_out:
        yield (
            f"{config.data.source} leaves no held-out sample to evaluate on; raise data.held_out_share, or set "
            "evaluation.every=0"
        )
    if config.weighting.kind == "tdw" and needs_static_weights(config):
        yield f'shaping.rule: "{config.shaping.rule}" needs static weights; add weighting.kind=constant'
    yield from _unscorable_rewards(config, train)
    for metric in config.evaluation.metrics:
        chosen = str(metric) == (config.keep_best or "").removesuffix(OF_AVERAGE)
        lacking = [metric.lacking(sample) for sample in held_out] if chosen else []
        if lacking and all(lacking):
            yield f"keep_best: {metric} can score no held-out sample: they have no {lacking[0]}; name another"


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
