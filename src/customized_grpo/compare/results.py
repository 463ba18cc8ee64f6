"""The results of finished arms, result.json: the keys that every reader needs, checked when a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from customized_grpo.compare.comparison import BASE, Comparison, Results
from customized_grpo.files.json_text import check_shape, read_json
from customized_grpo.run.logs import LOGS, LogRow, read_logs

RESULT = "result.json"
SECONDS = "seconds.json"  # beside it: seconds of each update; not in the result, which is the same on any machine


_SECONDS = TypeAdapter(list[float])


class _Row(BaseModel):
    """One update or one evaluation: figures by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    update: int


class RunWarningRow(BaseModel):
    """A row of a run's "warnings"; runs made before `rising` and `falling` existed do not have them."""

    update: int
    kind: str
    message: str
    rising: str | None = None
    falling: str | None = None


class _Result(BaseModel):
    """A result.json; further keys are allowed, such as "arm", "seed" and "code"."""

    test: dict[str, float | None]  # mean of each test metric; null: nothing could be scored
    updates: list[_Row]
    held_out: list[_Row]
    warnings: list[RunWarningRow]


class LogRowShape(BaseModel):
    """A row of a run's metrics.jsonl or evaluations.jsonl, as far as every reader needs it."""

    update: int
    warnings: list[RunWarningRow] = []


_LOG = TypeAdapter(list[LogRowShape])


def read_run_logs(run: Path) -> tuple[list[LogRow], list[LogRow]]:
    """The rows of metrics.jsonl and evaluations.jsonl. Raises an InputError if they are not those of a run."""
    logs = read_logs(run)
    for rows, name in zip(logs, LOGS, strict=True):
        check_shape(rows, _LOG, str(run / name), f"restore the file, or delete {run} and run it again")
    return logs


def read_result(folder: Path) -> dict[str, Any]:
    """The result in the folder of an arm and seed. Raises JsonError if it is missing or damaged."""
    way_out = "restore the file, or delete it and run the comparison again"
    return read_json(folder / RESULT, _Result, way_out)


def _seconds(folder: Path) -> dict[str, list[float]]:
    if not (folder / SECONDS).exists():
        return {}
    return {"seconds": read_json(folder / SECONDS, _SECONDS, "restore the file, or delete it")}


def collect(comparison: Comparison) -> Results:
    """The results of all finished arms, by arm and seed; with "seconds" where they are known.

    Raises JsonError if one of them is damaged.
    """
    finished: Results = {}
    for arm, seed in comparison.jobs:
        folder = comparison.folder(arm, seed)
        if (folder / RESULT).exists():
            finished.setdefault(arm, {})[seed] = read_result(folder) | _seconds(folder)
    return {arm: finished[arm] for arm in (BASE, *comparison.arms) if arm in finished}
