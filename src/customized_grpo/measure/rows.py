"""Rows of an evaluation, one per image: written as they come, read back, turned into figures."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customized_grpo.errors import UsageError
from customized_grpo.measure.intervals import Estimate, estimate


@dataclass(frozen=True)
class EvaluationRow:
    """One image of one sample, and what each metric says of it; NaN: could not be scored."""

    sample: str
    subject: str
    prompt: str
    index: int  # of the image among the sample's images; with the sample's id it decides the seed
    scores: Mapping[str, float]

    @property
    def key(self) -> tuple[str, int]:
        return self.sample, self.index

    def as_line(self) -> str:
        scores = {name: None if math.isnan(value) else value for name, value in self.scores.items()}
        return json.dumps({**self.__dict__, "scores": scores}, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> EvaluationRow:
        values: dict[str, Any] = json.loads(line)
        scores = {name: math.nan if value is None else value for name, value in values.pop("scores").items()}
        return cls(**values, scores=scores)


def read_rows(file: Path) -> list[EvaluationRow]:
    """All whole rows of a file; a last line that a crash cut short is not one. No file: no rows."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [EvaluationRow.from_line(line) for line in lines if line.endswith("\n")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} holds a line that no evaluation wrote ({error}); remove the folder") from error


def column(rows: Sequence[EvaluationRow], metric: str) -> Tensor:
    """Scores of one metric [N], float64."""
    return torch.tensor([row.scores[metric] for row in rows], dtype=torch.float64)


def overall(rows: Sequence[EvaluationRow]) -> dict[str, Estimate | None]:
    """Mean of each metric with its interval over subjects; None where nothing could be scored."""
    subjects = [row.subject for row in rows]
    columns = {metric: column(rows, metric) for metric in rows[0].scores}
    return {name: None if values.isnan().all() else estimate(values, subjects) for name, values in columns.items()}


def unscored(rows: Sequence[EvaluationRow]) -> dict[str, int]:
    """How many images each metric could not score."""
    return {metric: int(column(rows, metric).isnan().sum()) for metric in rows[0].scores}


def means_by(rows: Sequence[EvaluationRow], key: Callable[[EvaluationRow], str]) -> dict[str, dict[str, float | None]]:
    """Mean of every metric per subject, per prompt, ...: whatever `key` says of a row."""
    parts: dict[str, list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        parts[key(row)].append(row)
    return {
        name: {metric: _mean(column(part, metric)) for metric in part[0].scores}
        for name, part in sorted(parts.items())
    }


def _mean(values: Tensor) -> float | None:
    return None if values.isnan().all() else values.nanmean().item()


@dataclass(frozen=True)
class Dominance:
    """Share of images that are better than the base's on every reward, and share worse on every one."""

    better: Estimate
    worse: Estimate
    compared: int
    left_out: int  # images that one of the two evaluations lacks or could not score

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "better": self.better.as_dict(), "worse": self.worse.as_dict()}


def joint_dominance(rows: Sequence[EvaluationRow], base: Sequence[EvaluationRow], rewards: Sequence[str]) -> Dominance:
    """Images paired by sample and index. A tie on one reward is neither better nor worse.

    Raises ValueError where no pair is scored by all `rewards`.
    """
    known = {row.key: row for row in base}
    pairs = [(row, known[row.key]) for row in rows if row.key in known]
    for row, other in pairs[:1]:
        missing = [reward for reward in rewards if reward not in row.scores or reward not in other.scores]
        if missing:
            raise UsageError(f"the two evaluations do not share {', '.join(missing)}; evaluate both with it")
    changes = [[row.scores[reward] - other.scores[reward] for reward in rewards] for row, other in pairs]
    change = torch.tensor(changes, dtype=torch.float64).reshape(len(pairs), len(rewards))
    scored = ~change.isnan().any(dim=1)
    if not scored.any():
        raise UsageError("no image is in both evaluations and scored by every reward; were they made of other cases?")
    subjects = [row.subject for (row, _), keep in zip(pairs, scored.tolist(), strict=True) if keep]
    better, worse = (change[scored] > 0).all(dim=1).double(), (change[scored] < 0).all(dim=1).double()
    compared = int(scored.sum())
    left_out = len({row.key for row in rows} | {*known}) - compared
    return Dominance(estimate(better, subjects), estimate(worse, subjects), compared, left_out)
