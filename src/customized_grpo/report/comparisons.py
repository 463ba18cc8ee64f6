"""The part of a report that shows a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from customized_grpo.compare.comparison import SPREAD
from customized_grpo.compare.results import read_result
from customized_grpo.report.cases import BASE, film_of, read_estimate, wall_of_film
from customized_grpo.report.content import Arm, History, MetricRow, Part, Table
from customized_grpo.report.formats import ComparisonShape, read_json
from customized_grpo.wording import counted

MANY = 4  # arms; if there are more, they are shown a selection at a time


def comparison_part(folder: Path) -> Part:
    """From comparison.json and the arms' result.json: the runs themselves may be gone."""
    content = read_json(folder / "comparison.json", ComparisonShape)
    finished, settings = content["arms"], content["settings"]
    arms = [
        Arm(name, [_history(folder / "arms" / name / f"seed-{seed}", seed) for seed in arm["seeds"]])
        for name, arm in finished.items()
        if name != BASE
    ]
    film = film_of([Arm(arm.name, arm.runs[:1]) for arm in arms])
    seeds = sorted({int(seed) for arm in finished.values() for seed in arm["seeds"]})
    return Part(
        "Comparison",
        folder.resolve().name,
        [f"recipe {settings['recipe']}", counted(len(arms), "arm"), f"seeds {_ranges(seeds)}"],
        _tables(content),
        content["differences"],
        arms,
        film=film,
        wall=wall_of_film(film),
        files={"comparison settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)},
        selections=_selections(settings, list(finished)),
        front=[name for name in settings.get("front", ()) if name in finished],
        beyond_front=content.get("beyond_front", ()),
        degradation=content.get("degradation", ()),
    )


def _tables(content: Mapping[str, Any]) -> list[Table]:
    """One table of the metrics that the file compares, and a folded one of all others."""
    finished, settings = content["arms"], content["settings"]
    figures = {name: arm["figures"] for name, arm in finished.items()}
    metrics = list(dict.fromkeys(metric for of_arm in figures.values() for metric in of_arm))
    trained = {metric for arm in finished.values() for metric in arm.get("trained_on", ())}
    rows = {
        metric: MetricRow(
            metric, metric in trained, [read_estimate(of_arm.get(metric)) for of_arm in figures.values()]
        )
        for metric in metrics
    }
    first = [settings["primary"]["metric"], *settings["compare_on"]] if settings["compare_on"] else metrics
    wanted = [metric for metric in dict.fromkeys(first) if metric in rows]
    counts = sorted({len(arm["seeds"]) for arm in finished.values()})
    title = f"Test cases, {' to '.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''} per arm"
    notes = [SPREAD]
    if content["finished"] < content["runs"]:
        notes.append(f"Not finished yet: this table has {content['finished']} of {content['runs']} runs.")
    tables = [Table(title, list(figures), [rows[metric] for metric in wanted], notes, column_kind="arm")]
    others = [row for metric, row in rows.items() if metric not in wanted]
    if others:
        tables.append(Table("All other figures", list(figures), others, folded=True, column_kind="arm"))
    return tables


def _selections(settings: Mapping[str, Any], finished: Sequence[str]) -> dict[str, list[str]]:
    """Selections of many arms: the primary question's, those of the file, all. None if all arms fit at once."""
    arms = [name for name in finished if name != BASE]
    if len(arms) <= MANY:
        return {}
    primary = [*settings["primary"]["against"], settings["primary"]["arm"]]
    named = settings.get("selections", {})
    first = next((name for name, selected in named.items() if {*selected} == {*primary}), "main question")
    wanted = {first: primary, **{name: selected for name, selected in named.items() if name != first}, "all": arms}
    existing = {name: [arm for arm in selected if arm in arms] for name, selected in wanted.items()}
    return {name: selected for name, selected in existing.items() if selected}


def _history(folder: Path, seed: str) -> History:
    """From result.json, which has the figures even if the run itself was deleted."""
    result = read_result(folder)
    images = folder / "run" / "images"
    return History(f"seed {seed}", result["updates"], result["held_out"], result["warnings"], images)


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
