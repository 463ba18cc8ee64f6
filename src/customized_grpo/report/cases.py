"""From folders to the cases that a report shows: walls of evaluations, films of trainings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path, PurePath
from typing import Any

from customized_grpo.data.paths import inside
from customized_grpo.errors import InputError
from customized_grpo.measure.intervals import Estimate
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.report.content import Arm, Case, Film, Picture, Wall
from customized_grpo.run.cases import CASES

PICTURES = 1000  # on a wall, at most, references included
STOPS = 41  # of a slider, at most
BASE, TUNED = "base", "tuned"


class ReportError(InputError, ValueError):
    """A folder of which no report can be made; the message says what was looked for."""


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{file} is not JSON: {error}") from error


def read_estimate(figure: Mapping[str, float | None] | None) -> Estimate | None:
    mean = None if figure is None else figure["mean"]
    if figure is None or mean is None:
        return None
    low, high = (nan if (side := figure[name]) is None else side for name in ("low", "high"))
    return Estimate(mean, low, high)


def kept_cases(images: Path, name: str) -> list[Case]:
    """Cases that `keep_cases` wrote; none where it did not."""
    file = images / name / CASES
    return [
        Case(
            each["sample"],
            each["subject"],
            each["prompt"],
            _beneath(images, each["reference"]),
            [Picture(_beneath(images, each["picture"]), each["scores"])],
        )
        for each in (read_json(file) if file.is_file() else ())
    ]


def _beneath(images: Path, name: str) -> Path:
    """A page is passed around: a run from elsewhere does not choose which of our files are put on it."""
    file = inside(PurePath(name), images)
    if file is None:
        raise ReportError(f"{images} names the picture {name!r}, which lies outside; this is no run as it was written")
    return file


def evaluated_cases(folder: Path, rows: Sequence[EvaluationRow]) -> list[Case]:
    """Rows stand in the order of the cases, whose numbers begin the names of the pictures."""
    pictures, references = (
        {path.name.split("-")[0]: path for path in (folder / part).glob("*.png")} for part in ("images", "references")
    )
    by_sample = {row.sample: references.get(f"{n:05d}") for n, row in enumerate(rows) if row.index == 0}
    cases = []
    for number, row in enumerate(rows):
        file = pictures.get(f"{number:05d}")
        if file is not None:
            scores = {name: None if isnan(value) else value for name, value in row.scores.items()}
            reference = by_sample.get(row.sample)
            key = f"{row.sample} {row.index}"
            cases.append(Case(key, row.subject, row.prompt, reference, [Picture(file, scores)]))
    return cases


def _beside(columns: Iterable[Sequence[Case]]) -> list[Case]:
    """Cases of one picture each, from several columns, side by side by their keys."""
    columns = list(columns)
    known: dict[str, Case] = {}
    for cases in columns:
        for case in cases:
            known.setdefault(case.key, case)
    pictures = [{case.key: case.pictures[0] for case in cases} for cases in columns]
    return [
        Case(case.key, case.subject, case.prompt, case.reference, [each.get(case.key) for each in pictures])
        for case in known.values()
    ]


def wall_of(columns: Sequence[tuple[str, Sequence[Case]]], total: int) -> Wall | None:
    cases = _beside(each for _, each in columns)
    room = PICTURES // (len(columns) + 1)
    return Wall([name for name, _ in columns], cases[:room], max(total, len(cases))) if cases else None


def film_of(arms: Sequence[Arm]) -> Film | None:
    """The kept cases of the arms' first runs, after every update that all of them evaluated; None for a single one.

    That would be the base alone, under the names of the arms.
    """
    runs = {arm.name: arm.runs[0] for arm in arms}
    kept = {
        name: {
            row["update"]: cases
            for row in run.held_out
            if (cases := kept_cases(run.images, f"eval-{row['update']:05d}"))
        }
        for name, run in runs.items()
    }
    kept = {name: evaluations for name, evaluations in kept.items() if evaluations}
    if not kept:
        return None
    first = {case.key for case in next(iter(next(iter(kept.values())).values()))}
    same = {n: e for n, e in kept.items() if {case.key for case in next(iter(e.values()))} == first}
    updates = sorted(set.intersection(*(set(evaluations) for evaluations in same.values())))
    if len(updates) > STOPS:
        updates = [updates[round(n * (len(updates) - 1) / (STOPS - 1))] for n in range(STOPS)]
    frames = [_beside(evaluations[update] for evaluations in same.values()) for update in updates]
    columns = list(same) if len(same) > 1 else ["generated"]
    return Film(updates, columns, frames) if len(updates) > 1 else None


def wall_of_film(film: Film | None) -> Wall | None:
    """Its first and last frame: before the first update all arms are the base."""
    if film is None:
        return None
    before = [Case(c.key, c.subject, c.prompt, c.reference, c.pictures[:1]) for c in film.frames[0]]
    cases = [
        Case(b.key, b.subject, b.prompt, b.reference, [*b.pictures, *a.pictures])
        for b, a in zip(before, film.frames[-1], strict=True)
    ]
    first, last = film.updates[0], film.updates[-1]
    columns = [BASE if first == 0 else f"update {first}"]
    columns += [f"update {last}"] if len(film.columns) == 1 else list(film.columns)
    return Wall(columns, cases, len(cases))
