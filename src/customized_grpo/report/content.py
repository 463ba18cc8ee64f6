"""The content of a report, independent of the kind of folder that it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customized_grpo.calibration.intervals import Estimate

Scores = Mapping[str, float | None]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class History:
    """One training: rows of metrics.jsonl and of evaluations.jsonl, its warnings, and the folder of its pictures."""

    name: str
    updates: Rows
    held_out: Rows
    warnings: Rows
    images: Path


@dataclass(frozen=True)
class Arm:
    """Trainings that differ only in the seed."""

    name: str
    runs: Sequence[History]


@dataclass(frozen=True)
class MetricRow:
    """One metric: a figure per column of its table (None: not measured), and the change if there are two columns."""

    metric: str
    trained_on: bool
    figures: Sequence[Estimate | None]
    change: Estimate | None = None


@dataclass(frozen=True)
class Table:
    """Metrics by models; a folded table is closed until the reader opens it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[MetricRow]
    notes: Sequence[str] = ()
    folded: bool = False
    column_kind: str = "model"  # what a column is: a model, an arm, a step


@dataclass(frozen=True)
class Picture:
    file: Path
    scores: Scores


@dataclass(frozen=True)
class Case:
    """A reference and a prompt with one picture per column of a wall or a film (None: no picture)."""

    key: str
    subject: str
    prompt: str
    reference: Path | None
    pictures: Sequence[Picture | None]


@dataclass(frozen=True)
class Wall:
    """Cases in list order; `total` includes those that are left out."""

    columns: Sequence[str]
    cases: Sequence[Case]
    total: int


@dataclass(frozen=True)
class Film:
    """The same cases after some of the updates: frames[i] are the cases after updates[i], a column per arm."""

    updates: Sequence[int]
    columns: Sequence[str]
    frames: Sequence[Sequence[Case]]


@dataclass(frozen=True)
class Part:
    """The content of one demo, one comparison, one probe, all runs, or all evaluations."""

    kind: str
    title: str
    facts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    differences: Sequence[Mapping[str, Any]] = ()
    arms: Sequence[Arm] = ()
    film: Film | None = None
    wall: Wall | None = None
    files: Mapping[str, str] = field(default_factory=dict)  # name -> text, folded
    selections: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> arms; the first is active
    front: Sequence[str] = ()  # arms that differ in one weight, in order of it
    beyond_front: Sequence[Mapping[str, Any]] = ()
    degradation: Sequence[Mapping[str, Any]] = ()
    probe: Mapping[str, Any] | None = None

    @property
    def selected(self) -> list[str]:
        """The arms shown when the page opens: those of the first selection if there are any, else all."""
        return list(next(iter(self.selections.values()), [arm.name for arm in self.arms]))

    @property
    def has_oracle(self) -> bool:
        """Whether an oracle judged the pictures."""
        cases = [*(self.wall.cases if self.wall else ()), *(self.film.frames[0] if self.film else ())]
        return any(name.startswith("oracle_") for case in cases for p in case.pictures if p for name in p.scores)
