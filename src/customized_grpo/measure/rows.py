"""Rows of an evaluation, one per image: written as they come, read back, averaged and compared."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from customized_grpo.calibration.intervals import Estimate, estimate
from customized_grpo.errors import UsageError

_Score = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # JSON has no NaN


@dataclass(frozen=True)
class EvaluationRow:
    """One image of one sample with its score in each metric; NaN: could not be scored."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    sample: str
    subject: str
    prompt: str
    index: int  # of the image among the sample's images; together with the sample's id it decides the seed
    scores: Mapping[str, _Score]

    @property
    def key(self) -> tuple[str, int]:
        return self.sample, self.index

    def as_line(self) -> str:
        scores = {name: None if math.isnan(value) else value for name, value in self.scores.items()}
        return json.dumps({**self.__dict__, "scores": scores}, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> EvaluationRow:
        """Raises pydantic.ValidationError if the line is not a row."""
        return TypeAdapter(cls).validate_json(line)


def read_rows(file: Path) -> list[EvaluationRow]:
    """All complete rows of a file; a last line that a crash cut short is skipped. No rows if there is no file.

    Raises UsageError if the file cannot be read, or a line is not a row with the same metrics as the first.
    """
    if not file.exists():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{file} cannot be read ({reason}); restore it, or remove the folder") from None
    *lines, _ = text.split("\n")  # splitlines() also breaks at characters such as U+2028, which prompts may hold
    rows: list[EvaluationRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = EvaluationRow.from_line(line)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))} {each['msg']}".strip() for each in error.errors())
            raise UsageError(_damaged(file, number, wrong)) from None
        if rows and row.scores.keys() != rows[0].scores.keys():
            wrong = f"scores of {', '.join(row.scores)}; line 1 has {', '.join(rows[0].scores)}"
            raise UsageError(_damaged(file, number, wrong))
        rows.append(row)
    return rows


def _damaged(file: Path, line: int, reason: str) -> str:
    way_out = "remove the line and run that evaluation again to replace its image"
    return f"{file}, line {line}: not a row of an evaluation ({reason}); {way_out}"


def scores_of(rows: Sequence[EvaluationRow], metric: str) -> Tensor:
    """Scores of one metric [N], float64."""
    return torch.tensor([row.scores[metric] for row in rows], dtype=torch.float64)


def mean_scores(rows: Sequence[EvaluationRow]) -> dict[str, Estimate | None]:
    """Mean of each metric with its interval over subjects; None if no image could be scored."""
    subjects = [row.subject for row in rows]
    columns = {metric: scores_of(rows, metric) for metric in rows[0].scores}
    return {name: None if values.isnan().all() else estimate(values, subjects) for name, values in columns.items()}


def count_unscored(rows: Sequence[EvaluationRow]) -> dict[str, int]:
    """Number of images that each metric could not score."""
    return {metric: int(scores_of(rows, metric).isnan().sum()) for metric in rows[0].scores}


def means_by(rows: Sequence[EvaluationRow], key: Callable[[EvaluationRow], str]) -> dict[str, dict[str, float | None]]:
    """Mean of every metric for each value of `key`, such as the subject or the prompt."""
    groups: dict[str, list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {
        name: {metric: _mean(scores_of(group, metric)) for metric in group[0].scores}
        for name, group in sorted(groups.items())
    }


def _mean(values: Tensor) -> float | None:
    return None if values.isnan().all() else values.nanmean().item()


def mean_change(rows: Sequence[EvaluationRow], base: Sequence[EvaluationRow], metric: str) -> Estimate | None:
    """Change since `base` over the images that both have, by sample and index, and scored; interval over subjects.

    None if there is no such image.
    """
    known = {row.key: row.scores[metric] for row in base if metric in row.scores}
    pairs = [(row, known[row.key]) for row in rows if row.key in known and metric in row.scores]
    changes = torch.tensor([row.scores[metric] - before for row, before in pairs], dtype=torch.float64)
    return None if changes.isnan().all() else estimate(changes, [row.subject for row, _ in pairs])


@dataclass(frozen=True)
class Dominance:
    """Share of images that are better than the base's on every reward, and share that are worse on every reward."""

    better: Estimate
    worse: Estimate
    compared: int
    left_out: int  # images that only one of the two evaluations has, or that some reward could not score

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "better": self.better.as_dict(), "worse": self.worse.as_dict()}


def joint_dominance(rows: Sequence[EvaluationRow], base: Sequence[EvaluationRow], rewards: Sequence[str]) -> Dominance:
    """Images paired by sample and index. A tie on one reward is neither better nor worse.

    Raises UsageError if no pair is scored by all `rewards`.
    """
    base_by_key = {row.key: row for row in base}
    pairs = [(row, base_by_key[row.key]) for row in rows if row.key in base_by_key]
    changes = [[row.scores[reward] - before.scores[reward] for reward in rewards] for row, before in pairs]
    change = torch.tensor(changes, dtype=torch.float64).reshape(len(pairs), len(rewards))
    scored = ~change.isnan().any(dim=1)
    if not scored.any():
        raise UsageError(
            "no image is in both evaluations and scored by every reward; evaluate both on the same samples"
        )
    subjects = [row.subject for (row, _), keep in zip(pairs, scored.tolist(), strict=True) if keep]
    better, worse = (change[scored] > 0).all(dim=1).double(), (change[scored] < 0).all(dim=1).double()
    compared = int(scored.sum())
    left_out = len({row.key for row in rows} | {*base_by_key}) - compared
    return Dominance(estimate(better, subjects), estimate(worse, subjects), compared, left_out)
