"""Which settings may change when a run is resumed: the table below, and nothing else.

Any other setting affects what is trained or logged: with a new value, the two parts would be two different runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from customized_grpo.config import RunConfig

ROUNDING = "results then agree up to rounding, not bit for bit"
# Dotted key, with * for any reward -> what the user should know about a change. `updates` may change because nothing
# in training depends on how many updates are still to come: a resumed run with more of them equals the longer run.
MAY_CHANGE: Mapping[str, str] = {
    "updates": "",
    "save_every": "",
    "keep_last": "",
    "output": "",  # the folder was moved
    "on_degradation": "it acts on the warnings so far, too",
    "tracking": "",  # only copies what the run logs
    "max_unscored": "",  # decides when a run stops, not what it trains
    "model.gradient_checkpointing": "",
    "model.offload_text_encoders": "",
    "model.condition_cache": "",
    "device": ROUNDING,
    "model.shard": ROUNDING,
    "model.compile": ROUNDING,
    "groups.batch": "",  # chooses the next two, which are compared
    "groups.rollout_batch": ROUNDING,
    "groups.update_batch": ROUNDING,
    "rewards.*.batch": ROUNDING,
    "rewards.*.device": ROUNDING,
    "data.root": "",  # the files were moved; their content is compared
    # Servers move; only the user knows whether they score alike.
    "rewards.*.url": "it must give the same scores",
    "rewards.*.base_url": "it must give the same scores",
    "rewards.*.api_key_env": "",
    "rewards.*.timeout": "",
    "rewards.*.retries": "",
    "rewards.*.in_flight": "",
}


@dataclass(frozen=True)
class Change:
    """A setting whose value changed since the run was last started."""

    key: str
    old: Any
    new: Any

    @property
    def note(self) -> str | None:
        """What the user should know about an allowed change; None if the change is not allowed."""
        section, *rest = self.key.split(".")
        pattern = ".".join([section, "*", *rest[1:]]) if section == "rewards" and rest else self.key
        return MAY_CHANGE.get(pattern)

    @property
    def allowed(self) -> bool:
        return self.note is not None

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.key}: {_as_override(self.old)} -> {_as_override(self.new)}{note}"


def changes(old: RunConfig, new: RunConfig) -> list[Change]:
    """Every setting whose value differs, in the order of the configuration."""
    before, after = dict(_settings(old)), dict(_settings(new))
    return [
        Change(key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def refusal(change: Change) -> str:
    """The line that refuses a change."""
    return f"{change}; resume with {change.key}={_as_override(change.old)}, or start another run with output=..."


def _settings(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; metrics as the user writes them."""
    yield from _flatten(config.model_dump(mode="json", exclude={"evaluation": {"metrics"}}))
    yield "evaluation.metrics", [str(metric) for metric in config.evaluation.metrics]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_override(value: Any) -> str:
    """A value as the user would write it in an override."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
