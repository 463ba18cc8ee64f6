"""The names of rewards and metrics in rows and tables, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from customized_grpo.config import RunConfig
from customized_grpo.rewards.settings import RewardSettings


@dataclass(frozen=True)
class NamedMetric:
    settings: RewardSettings  # with its model, without role and weight
    keys: tuple[str, ...]  # in `rewards`, if it is trained on
    written: str  # as written in the configuration, which may state a model that the name leaves out


def named_metrics(
    config: RunConfig, further: Sequence[RewardSettings] = (), in_full: Collection[str] = ()
) -> dict[str, NamedMetric]:
    """The trained rewards, `evaluation.metrics` and `further`, in this order, each once.

    A name states the model only if the same metric is listed with another model too, or if its short name is one of
    `in_full`.
    """
    wanted: list[tuple[RewardSettings, tuple[str, ...]]]
    wanted = [(reward.as_metric(), (key,)) for key, reward in config.trained().items()]
    wanted += [(metric, ()) for metric in (*config.evaluation.metrics, *further)]
    named: dict[str, NamedMetric] = {}
    for metric, keys in wanted:
        settings = config.resolve(metric)
        label = settings.label
        known = named[label].settings.measurement if label in named else settings.measurement
        name = label if label not in in_full and known == settings.measurement else settings.measurement
        listed = named.get(name, NamedMetric(settings, (), str(metric)))
        named[name] = replace(listed, keys=(*listed.keys, *keys))
    return named


def trained_names(config: RunConfig, in_full: Collection[str] = ()) -> dict[str, str]:
    """The name of each trained reward by its key."""
    names = {key: name for name, metric in named_metrics(config, (), in_full).items() for key in metric.keys}
    return {key: names[key] for key in config.rewards}
