"""The cases that a report shows: walls of evaluations, films of trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path, PurePath

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.files.paths import inside
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.report import formats
from customized_grpo.report.content import Arm, Case, Film, Picture, Wall
from customized_grpo.report.formats import ReportError
from customized_grpo.run.cases import CASES

PICTURES = 1000  # on a wall, at most, references included
STOPS = 41  # of a slider, at most
BASE, TUNED = "base", "tuned"


def read_estimate(figure: Mapping[str, float | None] | None) -> Estimate | None:
    """From a figure in a JSON file; None if it is unknown."""
    mean = None if figure is None else figure["mean"]
    if figure is None or mean is None:
        return None
    low, high = (nan if (end := figure.get(name)) is None else end for name in ("low", "high"))
    return Estimate(mean, low, high)


def kept_cases(images: Path, name: str) -> list[Case]:
    """The cases that `keep_cases` wrote; none if it did not."""
    file = images / name / CASES
    return [
        Case(
            row["sample"],
            row["subject"],
            row["prompt"],
            _beneath(images, row["reference"]),
            [Picture(_beneath(images, row["picture"]), row["scores"])],
        )
        for row in (formats.read_json(file, formats.CASES) if file.is_file() else ())
    ]


def _beneath(images: Path, name: str) -> Path:
    """Pages are passed around: a run from elsewhere must not put other files of this machine on one."""
    file = inside(PurePath(name), images)
    if file is None:
        raise ReportError(f"{images} names the picture {name!r}, which lies outside; {formats.WAY_OUT}")
    return file


def evaluated_cases(folder: Path, rows: Sequence[EvaluationRow]) -> list[Case]:
    """Rows are in the order of the cases, and names of pictures begin with the number of the case."""
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


def _side_by_side(columns: Iterable[Sequence[Case]]) -> list[Case]:
    """Joins cases of one picture each, from several columns, by their keys."""
    columns = list(columns)
    known: dict[str, Case] = {}
    for cases in columns:
        for case in cases:
            known.setdefault(case.key, case)
    pictures = [{case.key: case.pictures[0] for case in cases} for cases in columns]
    return [
        Case(case.key, case.subject, case.prompt, case.reference, [column.get(case.key) for column in pictures])
        for case in known.values()
    ]


def wall_of(columns: Sequence[tuple[str, Sequence[Case]]], total: int) -> Wall | None:
    """As many of the cases as fit on a page; `total` is the number of cases that exist."""
    cases = _side_by_side(cases for _, cases in columns)
    room = PICTURES // (len(columns) + 1)
    return Wall([name for name, _ in columns], cases[:room], max(total, len(cases))) if cases else None


def film_of(arms: Sequence[Arm]) -> Film | None:
    """The kept cases of each arm's first run, after every update that all of them evaluated.

    None if there is only one such update: it would show the base under the names of the arms.
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
    keys = _keys(next(iter(next(iter(kept.values())).values())))
    same = {
        name: {update: cases for update, cases in evaluations.items() if _keys(cases) == keys}
        for name, evaluations in kept.items()
    }
    same = {name: evaluations for name, evaluations in same.items() if evaluations}
    updates = sorted(set.intersection(*(set(evaluations) for evaluations in same.values())))
    if len(updates) > STOPS:
        updates = [updates[round(n * (len(updates) - 1) / (STOPS - 1))] for n in range(STOPS)]
    frames = [_side_by_side(evaluations[update] for evaluations in same.values()) for update in updates]
    columns = list(same) if len(same) > 1 else ["generated"]
    return Film(updates, columns, frames) if len(updates) > 1 else None


def _keys(cases: Sequence[Case]) -> set[str]:
    return {case.key for case in cases}


def wall_of_film(film: Film | None) -> Wall | None:
    """The first and the last frame of a film: before the first update all arms are the base."""
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
