"""Which settings may be others when a run goes on: one table, and whatever is not in it may not.

A setting that is not here decides what is trained or logged: with another value the two halves would be two runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from customized_grpo.config import RunConfig

ROUNDING = "the rest agrees up to rounding, not bit for bit"
# Dotted key, * for any reward -> what the user should know. Nothing in training depends on how many updates are to
# come, so a run with more of them is the longer run.
MAY_CHANGE: Mapping[str, str] = {
    "updates": "",
    "save_every": "",
    "keep_last": "",
    "output": "",  # the folder was moved
    "tracking": "",  # copies of what the run writes down
    "max_unscored": "",  # when a run stops, not what it does before
    "model.gradient_checkpointing": "",
    "model.offload_text_encoders": "",
    "model.condition_cache": "",
    "device": ROUNDING,
    "model.shard": ROUNDING,
    "groups.rollout_batch": ROUNDING,
    "groups.update_batch": ROUNDING,
    "rewards.*.batch": ROUNDING,
    "rewards.*.device": ROUNDING,
    # Files and servers move; that they are still the same ones only the user can know.
    "data.root": "it must hold the same files",
    "rewards.*.url": "it must score alike",
    "rewards.*.base_url": "it must score alike",
    "rewards.*.api_key_env": "",
    "rewards.*.timeout": "",
    "rewards.*.retries": "",
    "rewards.*.in_flight": "",
}


@dataclass(frozen=True)
class Change:
    """A setting that is another than when the run was last started."""

    key: str
    old: Any
    new: Any

    @property
    def note(self) -> str | None:
        """What to know where this may change; None where it may not."""
        section, *rest = self.key.split(".")
        general = ".".join([section, "*", *rest[1:]]) if section == "rewards" and rest else self.key
        return MAY_CHANGE.get(general)

    @property
    def allowed(self) -> bool:
        return self.note is not None

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.old)} -> {_plain(self.new)}" + (f" ({self.note})" if self.note else "")


def changes(old: RunConfig, new: RunConfig) -> list[Change]:
    """Every setting with another value, in the order of the configuration."""
    before, after = (dict(_settings(config)) for config in (old, new))
    return [
        Change(key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def refusal(change: Change) -> str:
    """One line for a change that may not be."""
    return f"{change}; go on with {change.key}={_plain(change.old)}, or start another run with output=..."


def _settings(config: RunConfig) -> Iterator[tuple[str, Any]]:
    yield from _flat(config.model_dump(mode="json", exclude={"evaluation": {"metrics"}}))
    yield "evaluation.metrics", [str(metric) for metric in config.evaluation.metrics]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    """As one would write it in an override."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
