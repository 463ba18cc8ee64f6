"""From the parts of a report to its page: draws charts, encodes pictures; the template escapes all texts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from customized_grpo.report import labels
from customized_grpo.report.album import Album
from customized_grpo.report.cases import read_estimate
from customized_grpo.report.charts import extent, interval_plot
from customized_grpo.report.content import Case, Film, Part, Picture, Table, Wall
from customized_grpo.report.figures import (
    COUNT,
    arm_colours,
    conflict_figures,
    learning_figures,
    plane_figures,
)
from customized_grpo.report.probes import probe_figures
from customized_grpo.report.verdicts import degradation_verdicts, front_verdicts
from customized_grpo.run.logs import as_json

WIDE = 4  # models side by side in a table; if there are more, each has a row
KEY_METRICS = (
    ("joint_success", "oracle_identity", "oracle_prompt"),
    ("identity_reward", "prompt_reward"),
    ("dino", "clip_t"),
)
# Names of rewards in runs and in evaluations, and the oracle's verdict on the same quality.
VERDICTS = ((("identity_reward", "dino"), "oracle_identity"), (("prompt_reward", "clip_t"), "oracle_prompt"))


def render(title: str, parts: Sequence[Part]) -> str:
    """The complete page as text."""
    album = Album(path for part in parts for path in pictures_of(part))
    views = [view_of(part, album) for part in parts]
    script, style = f"{asset('widgets.js')}\n{asset('script.js')}", asset("style.css")
    return (
        templates()
        .get_template("template.html")
        .render(
            title=title,
            parts=views,
            warnings=sum(len(view["warnings"]) for view in views),
            meanings=_meanings(parts),
            data=as_json_script([data_of(view) for view in views]),
            script=Markup(script),
            style=Markup(style),
            # The page may run this one script and show the pictures inside it, and nothing else: it sends no request.
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
            version=version("customized-grpo"),
        )
    )


def asset(name: str) -> str:
    """The text of a style sheet or script of this folder."""
    return files("customized_grpo.report").joinpath(name).read_text("utf-8")


def templates(*more: BaseLoader) -> Environment:
    """The templates of this folder, and those of others; all of them escape every text."""
    environment = Environment(
        loader=ChoiceLoader([*more, PackageLoader("customized_grpo.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": labels.number, "label": labels.label, "p_value": labels.p_value}
    return environment


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def as_json_script(content: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element or open a comment."""
    return Markup(json.dumps(as_json(content), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def pictures_of(part: Part) -> Iterator[Path]:
    """The files of all pictures that a part shows."""
    frames = part.film.frames if part.film else ()
    for cases in (*frames, part.wall.cases if part.wall else ()):
        for case in cases:
            yield from (case.reference,) if case.reference else ()
            yield from (picture.file for picture in case.pictures if picture)


def _meanings(parts: Sequence[Part]) -> list[tuple[str, str]]:
    shown = {row.metric for part in parts for table in part.tables for row in table.rows}
    return [(labels.label(metric), text) for metric, text in labels.MEANINGS.items() if metric in shown]


def data_of(view: Mapping[str, Any]) -> dict[str, Any]:
    """What the widgets of a view need: `startFilm` and `startWall` in widgets.js."""
    return {"film": view["frames"], "wall": view["scores"]}


def view_of(part: Part, album: Album) -> dict[str, Any]:
    """Everything that the templates need of a part."""
    differences = [{**row, "estimate": read_estimate(row)} for row in part.differences]
    return {
        "part": part,
        "tables": [_table(table, part) for table in part.tables if table.rows],
        "headline": _headline(part),
        "primary": [row for row in differences if row["primary"]],
        "further": [row for row in differences if not row["primary"]],
        "picker": _picker(part),
        "probe": probe_figures(part.probe) if part.probe else [],
        "learning": learning_figures(part),
        "planes": plane_figures(part),
        "beyond": front_verdicts(part.beyond_front, part.front),
        "conflict": conflict_figures(part),
        "degradation": degradation_verdicts(part.degradation),
        "warnings": [
            {"where": _where(part, arm.name, run.name), **warning}
            for arm in part.arms
            for run in arm.runs
            for warning in run.warnings
        ],
        "film": part.film and {"film": part.film, **_cards(part.film.columns, part.film.frames[-1], part, album)},
        "frames": _frames(part.film, album),
        "wall": part.wall and {"wall": part.wall, **_cards(part.wall.columns, part.wall.cases, part, album)},
        "scores": _wall_scores(part.wall),
    }


def _where(part: Part, arm: str, run: str) -> str:
    if len(part.arms) == 1 and len(part.arms[0].runs) == 1:
        return ""
    return arm if arm == run else f"{arm}, {run}"


def _picker(part: Part) -> dict[str, Any] | None:
    """All arms, and selections of them by their places; None if all arms are shown at once."""
    if not part.selections:
        return None
    kinds, places = arm_colours(part), {arm.name: place for place, arm in enumerate(part.arms)}
    return {
        "arms": [(name, kinds[name], name in part.selected) for name in places],
        "selections": [(name, [places[arm] for arm in arms]) for name, arms in part.selections.items()],
    }


def colours(columns: Sequence[str], part: Part) -> list[str]:
    """A colour class per column: an arm keeps its own.

    Of one or two columns the last is black or white, and the one before it grey. Of more, the first is grey unless it
    is an arm: the others are compared with it.
    """
    if len(columns) <= 2:
        return ["s0", "ink"][-len(columns) :]
    known = arm_colours(part)
    return [known.get(name, f"s{(place - 1) % COUNT + 1}" if place else "s0") for place, name in enumerate(columns)]


def _table(table: Table, part: Part) -> dict[str, Any]:
    """A table with a row per metric, or with a row per model if there are many models."""
    kinds, by_model = colours(table.columns, part), len(table.columns) > WIDE
    view = {
        "table": table,
        "by_model": by_model,
        "columns": list(zip(table.columns, kinds, strict=True)),
        "trained": any(row.trained_on for row in table.rows),
    }
    if by_model:
        models = zip(table.columns, kinds, zip(*(row.figures for row in table.rows), strict=True), strict=True)
        within = extent(table.rows[0].figures)
        rows = [(name, kind, figures, interval_plot(figures[:1], [kind], within)) for name, kind, figures in models]
        return {**view, "rows": rows}
    rows = [(row, interval_plot(row.figures, kinds)) for row in table.rows]
    return {**view, "changes": any(row.change for row in table.rows), "rows": rows}


def _headline(part: Part) -> list[dict[str, Any]]:
    """Up to three figures of the first table, if it compares two columns."""
    if not part.tables or len(part.tables[0].columns) != 2:
        return []
    table = part.tables[0]
    rows = {row.metric: row for row in table.rows}
    chosen = next(([rows[m] for m in metrics] for metrics in KEY_METRICS if set(metrics) <= set(rows)), [])
    return [
        {"row": row, "before": row.figures[0], "after": row.figures[1], "columns": table.columns}
        for row in chosen
        if row.figures[0] and row.figures[1]
    ]


# --- pictures --------------------------------------------------------------------------------------------------------


def _scored(picture: Picture) -> list[tuple[str, str]]:
    """(short name, value) per line under a picture; a reward and the oracle's verdict on it share a line."""
    scores, lines, done = picture.scores, [], set[str]()
    for rewards, oracle in VERDICTS:
        if oracle in scores:
            reward = next(name for name in (*rewards, oracle) if name in scores)
            verdict = labels.score(oracle, scores[oracle])
            value = verdict if reward == oracle else f"{labels.score(reward, scores[reward])} {verdict}"
            lines.append((labels.short(reward), value))
            done |= {reward, oracle}
    if len(lines) == len(VERDICTS):
        done.add("joint_success")  # it follows from both verdicts
    return lines + [(labels.short(name), labels.score(name, scores[name])) for name in scores if name not in done]


def _cards(columns: Sequence[str], cases: Sequence[Case], part: Part, album: Album) -> dict[str, Any]:
    """Cards with one figure per column; a column that is an arm is shown and hidden with it."""
    places = {arm.name: place for place, arm in enumerate(part.arms)} if part.selections else {}
    hidden = {name for name in places if name not in part.selected}
    cards = [
        {
            "case": case,
            "reference": album[case.reference] if case.reference else None,
            "figures": [
                {
                    "name": column,
                    "arm": places.get(column),
                    "hidden": column in hidden,
                    "image": picture and album[picture.file],
                    "alt": f"{column}: {case.prompt}",
                    "scores": _scored(picture) if picture else [],
                }
                for column, picture in zip(columns, case.pictures, strict=True)
            ],
        }
        for case in cases
    ]
    visible = [place for place, column in enumerate(columns) if column not in hidden]
    return {"cards": cards, "width": 1 + len(visible), "last": visible[-1] if visible else 0}


def _frames(film: Film | None, album: Album) -> Mapping[str, Any] | None:
    """For the script, by stop, case and column: the data URI of the picture and its scores."""
    if film is None:
        return None
    frames = [
        [
            [[album[p.file].uri, *(value for _, value in _scored(p))] if p else None for p in case.pictures]
            for case in cases
        ]
        for cases in film.frames
    ]
    return {"updates": list(film.updates), "frames": frames}


def _wall_scores(wall: Wall | None) -> dict[str, Any] | None:
    """For sorting the cards: scores by [case][column][metric], and the names of columns and metrics."""
    if wall is None:
        return None
    pictures = [[picture.scores if picture else {} for picture in case.pictures] for case in wall.cases]
    metrics = list(dict.fromkeys(name for case in pictures for scores in case for name in scores))
    scores = [[[_rounded(of_column.get(name)) for name in metrics] for of_column in case] for case in pictures]
    return {"metrics": [labels.label(name) for name in metrics], "columns": wall.columns, "scores": scores}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 5)
