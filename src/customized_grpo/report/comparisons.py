"""From the folder of a comparison to its part of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from customized_grpo.compare.comparison import SPREAD
from customized_grpo.report.cases import BASE, film_of, read_estimate, read_json, wall_of_film
from customized_grpo.report.content import Arm, History, MetricRow, Part, Table

MANY = 4  # arms: more are shown a selection at a time


def comparison_part(folder: Path) -> Part:
    """From comparison.json and the arms' result.json: the runs themselves may be gone."""
    content = read_json(folder / "comparison.json")
    found, settings = content["arms"], content["settings"]
    arms = [
        Arm(name, [_history(folder / "arms" / name / f"seed-{seed}", seed) for seed in each["seeds"]])
        for name, each in found.items()
        if name != BASE
    ]
    film = film_of([Arm(arm.name, arm.runs[:1]) for arm in arms])
    seeds = sorted({int(seed) for each in found.values() for seed in each["seeds"]})
    return Part(
        "Comparison",
        folder.resolve().name,
        [f"recipe {settings['recipe']}", f"{len(arms)} arm{'s' if len(arms) > 1 else ''}", f"seeds {_ranges(seeds)}"],
        _tables(content),
        content["differences"],
        arms,
        film=film,
        wall=wall_of_film(film),
        files={"comparison settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)},
        selections=_selections(settings, list(found)),
        front=[name for name in settings.get("front", ()) if name in found],
        beyond_front=content.get("beyond_front", ()),
        degradation=content.get("degradation", ()),
    )


def _tables(content: Mapping[str, Any]) -> list[Table]:
    """What the file asks to be compared; all other metrics folded."""
    found, settings = content["arms"], content["settings"]
    figures = {arm: each["figures"] for arm, each in found.items()}
    metrics = list(dict.fromkeys(metric for each in figures.values() for metric in each))
    trained = {metric for each in found.values() for metric in each.get("trained_on", ())}
    rows = {m: MetricRow(m, m in trained, [read_estimate(each.get(m)) for each in figures.values()]) for m in metrics}
    first = [settings["primary"]["metric"], *settings["compare_on"]] if settings["compare_on"] else metrics
    wanted = [metric for metric in dict.fromkeys(first) if metric in rows]
    counts = sorted({len(each["seeds"]) for each in found.values()})
    title = f"Test cases, {' to '.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''} per arm"
    notes = [SPREAD]
    if content["finished"] < content["runs"]:
        notes.append(f"Not finished: {content['finished']} of {content['runs']} runs are in this table.")
    tables = [Table(title, list(figures), [rows[metric] for metric in wanted], notes, each="arm")]
    others = [row for metric, row in rows.items() if metric not in wanted]
    return [*tables, Table("All other figures", list(figures), others, folded=True, each="arm")] if others else tables


def _selections(settings: Mapping[str, Any], finished: Sequence[str]) -> dict[str, list[str]]:
    """Of many arms: the primary question's, the file's own selections, all. Nothing where all can be shown at once."""
    arms = [name for name in finished if name != BASE]
    if len(arms) <= MANY:
        return {}
    asked = [*settings["primary"]["against"], settings["primary"]["arm"]]
    named = settings.get("selections", {})
    first = next((name for name, each in named.items() if {*each} == {*asked}), "main question")
    wanted = {first: asked, **{name: each for name, each in named.items() if name != first}, "all": arms}
    shown = {name: [arm for arm in names if arm in arms] for name, names in wanted.items()}
    return {name: names for name, names in shown.items() if names}


def _history(folder: Path, seed: str) -> History:
    """From result.json, which holds the figures even where the run itself was deleted."""
    result = read_json(folder / "result.json")
    updates = [dict(row) for row in result["updates"]]
    for warning in result["warnings"]:
        next(row for row in updates if row["update"] == warning["update"]).setdefault("warnings", []).append(warning)
    return History(f"seed {seed}", updates, result["held_out"], folder / "run" / "images")


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
