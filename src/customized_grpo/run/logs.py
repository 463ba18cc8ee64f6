"""The logs of a run, metrics.jsonl and evaluations.jsonl: one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.errors import UsageError

LOGS = ("metrics.jsonl", "evaluations.jsonl")
LogRow = dict[str, Any]


def read_logs(run: Path) -> tuple[list[LogRow], list[LogRow]]:
    """The rows of a run's metrics.jsonl and evaluations.jsonl."""
    metrics, evaluations = (read_log(run / name) for name in LOGS)
    return metrics, evaluations


def read_log(file: Path) -> list[LogRow]:
    """The rows of a JSONL file; none where there is no file, and not the one that is just being written."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.endswith("\n") else []
        except json.JSONDecodeError as error:
            raise UsageError(f"{file}, line {number}: not JSON: {error.msg}; restore it, or remove the line") from None
    return rows


def as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: a figure that does not exist is null."""
    if isinstance(value, Mapping):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
