"""Rewards and metrics by the names that rows and tables give them, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from customized_grpo.config import RunConfig
from customized_grpo.rewards.settings import RewardSettings


@dataclass(frozen=True)
class NamedMetric:
    settings: RewardSettings  # with its model; neither role nor weight
    keys: tuple[str, ...]  # of `rewards`: where it is trained on; none: it is only looked at
    written: str  # the line that asked for it, which may name a model that the name leaves out


def named_metrics(config: RunConfig, further: Sequence[RewardSettings] = ()) -> dict[str, NamedMetric]:
    """The trained rewards, `evaluation.metrics` and `further`, in this order, each once.

    A name says where the model lies only if the same metric is there with another model.
    """
    wanted: list[tuple[RewardSettings, tuple[str, ...]]]
    wanted = [(reward.as_metric(), (key,)) for key, reward in config.trained().items()]
    wanted += [(metric, ()) for metric in (*config.evaluation.metrics, *further)]
    named: dict[str, NamedMetric] = {}
    for metric, keys in wanted:
        settings = config.resolve(metric)
        label = settings.label
        name = label if label not in named or named[label].settings == settings else str(settings)
        known = named.get(name, NamedMetric(settings, (), str(metric)))
        named[name] = replace(known, keys=(*known.keys, *keys))
    return named


def trained_names(config: RunConfig) -> dict[str, str]:
    """The name of each trained reward by its key."""
    names = {key: name for name, metric in named_metrics(config).items() for key in metric.keys}
    return {key: names[key] for key in config.rewards}
