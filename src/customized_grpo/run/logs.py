"""The logs of a run, metrics.jsonl and evaluations.jsonl: one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.errors import UsageError
from customized_grpo.files.durable import reason_of, write_text

LOGS = ("metrics.jsonl", "evaluations.jsonl")
LogRow = dict[str, Any]


def read_logs(run: Path) -> tuple[list[LogRow], list[LogRow]]:
    """The rows of a run's metrics.jsonl and evaluations.jsonl. Raises UsageError."""
    metrics, evaluations = (read_log(run / name) for name in LOGS)
    return metrics, evaluations


def read_log(file: Path) -> list[LogRow]:
    """The rows of a log; none if the file is missing. A last line that is still being written is left out.

    Raises UsageError if the file cannot be read or a line is not a row.
    """
    try:
        *lines, _ = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {reason_of(error)}") from None
    return [_parse_row(file, number, line) for number, line in enumerate(lines, start=1)]


def rewind_log(file: Path, update: int) -> None:
    """Remove the rows after an update, and a last line that was cut short. Raises UsageError, SavingError."""
    if not file.exists():
        return
    content = file.read_bytes()
    # strict=False: read_log leaves out a last line that was cut short.
    rows = zip(content.split(b"\n"), read_log(file), strict=False)
    kept = b"".join(line + b"\n" for line, row in rows if row["update"] <= update)
    if kept != content:
        write_text(file, kept.decode())


def _parse_row(file: Path, number: int, line: bytes) -> LogRow:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg}"
    except UnicodeDecodeError:
        problem = "not text in UTF-8"
    except RecursionError:
        problem = "not JSON: brackets are nested too deeply"
    else:
        if isinstance(row, dict) and type(row.get("update")) is int:
            return row
        problem = 'not a row: a row is a JSON object with a number "update"'
    raise UsageError(f"{file}, line {number}: {problem}; restore it, or remove the line")


def as_json(value: Any) -> Any:
    """A value in which NaN and infinity, which JSON does not have, are null."""
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
