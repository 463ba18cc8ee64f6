"""What a run measured on its held-out cases, of the base and of an adapter, with 95 % intervals.

Those of `evaluate` are taken if there are any; otherwise those of the run's own evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from customized_grpo.calibration.intervals import Estimate, over_cases
from customized_grpo.config import JOINT_CALIBRATED, OF_AVERAGE, RunConfig
from customized_grpo.files.json_text import read_json
from customized_grpo.policies.adapter_file import adapter_digest
from customized_grpo.run.logs import LogRow, read_logs

BASE, TUNED = "evaluation-base", "evaluation-tuned"  # folders of `evaluate` in a run's folder
SETTINGS, SUMMARY = "settings.json", "summary.json"  # files in them


@dataclass(frozen=True)
class Scores:
    """Estimates by metric; None: not measured, or nothing could be scored.

    cases    a sentence on what was measured
    trained  the metrics that were trained on
    """

    cases: str
    base: Mapping[str, Estimate | None]
    tuned: Mapping[str, Estimate | None]
    trained: frozenset[str]


class _Metric(BaseModel):
    mean: float | None
    low: float | None = None
    high: float | None = None
    trained_on: bool


class _Summary(BaseModel):
    images: int
    subjects: int
    metrics: dict[str, _Metric]


def scores_of_evaluations(run: Path, adapter: Path) -> Scores | None:
    """Those of `evaluate`, if it measured the base and this adapter on the same cases; None otherwise.

    Raises JsonError for a damaged file.
    """
    name = TUNED if adapter.parent == run else f"evaluation-{adapter.name}"
    folders = [run / BASE, run / name]
    if not all((folder / SUMMARY).is_file() for folder in folders):
        return None
    remedy = "run that evaluation again"
    base, tuned = (read_json(folder / SUMMARY, TypeAdapter(_Summary), remedy) for folder in folders)
    settings = [read_json(folder / SETTINGS, TypeAdapter(dict[str, Any]), remedy) for folder in folders]
    measured = [{key: value for key, value in each.items() if key != "adapter"} for each in settings]
    if measured[0] != measured[1] or settings[1].get("adapter") != adapter_digest(adapter):
        return None
    over = "subjects" if tuned["subjects"] > 1 else "images"
    return Scores(
        f"{tuned['images']} held-out images of {tuned['subjects']} subjects; intervals are over {over}",
        base={name: _estimate(metric) for name, metric in base["metrics"].items()},
        tuned={name: _estimate(metric) for name, metric in tuned["metrics"].items()},
        trained=frozenset(name for name, metric in tuned["metrics"].items() if metric["trained_on"]),
    )


def _estimate(metric: Mapping[str, Any]) -> Estimate | None:
    return None if metric["mean"] is None else Estimate(metric["mean"], metric["low"], metric["high"])


def scores_of_run(run: Path, config: RunConfig, update: int, *, average: bool) -> Scores | None:
    """Those of the run's own evaluations, before training and after `update`; None if there is none after it.

    average  of the adapter's moving average. Raises UsageError if a log is damaged.
    """
    rows = {row["update"]: row for row in read_logs(run)[1]}
    if (last := rows.get(update)) is None or update == 0:
        return None
    names = [name for name in last["scored"] if not name.endswith(OF_AVERAGE)]
    ending = OF_AVERAGE if average else ""
    trained = {f"{key}_reward" for key in config.rewards} | {JOINT_CALIBRATED}
    return Scores(
        f"the {max(last['scored'].values())} held-out cases of the run's evaluations, one image each; intervals take "
        "the cases as independent",
        {} if 0 not in rows else {name: _of_row(rows[0], name) for name in names},
        {name: _of_row(last, f"{name}{ending}") for name in names},
        frozenset(name for name in names if name in trained),
    )


def _of_row(row: LogRow, name: str) -> Estimate | None:
    mean, spread, count = row.get(name), row["spread"].get(name), row["scored"].get(name)
    return None if mean is None else over_cases(mean, float("nan") if spread is None else spread, count)
