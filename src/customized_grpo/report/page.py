"""From the parts of a report to its page: charts drawn, pictures encoded, texts escaped by the template."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from customized_grpo.report import labels
from customized_grpo.report.album import Album
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

WIDE = 4  # models side by side in a table; more stand one below the other
KEY_METRICS = (
    ("joint_success", "oracle_identity", "oracle_prompt"),
    ("identity_reward", "prompt_reward"),
    ("dino", "clip_t"),
)
# Rewards that an oracle has a verdict on, by the names that runs and evaluations give them.
VERDICTS = ((("identity_reward", "dino"), "oracle_identity"), (("prompt_reward", "clip_t"), "oracle_prompt"))


def render(title: str, parts: Sequence[Part]) -> str:
    """The whole page as text."""
    album = Album(path for part in parts for path in _files(part))
    environment = Environment(
        loader=PackageLoader("customized_grpo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": labels.number, "label": labels.label, "p_value": labels.p_value}
    views = [_view(part, album) for part in parts]
    script, style = (
        files("customized_grpo.report").joinpath(name).read_text("utf-8") for name in ("script.js", "style.css")
    )
    return environment.get_template("template.html").render(
        title=title,
        parts=views,
        warnings=sum(len(view["warnings"]) for view in views),
        meanings=_meanings(parts),
        data=as_json_script([{"film": view["frames"], "wall": view["scores"]} for view in views]),
        script=Markup(script),
        style=Markup(style),
        # The page may run this one script, show pictures that it holds, and nothing else: no request ever leaves it.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
        version=version("customized-grpo"),
    )


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def as_json_script(content: Any) -> Markup:
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    return Markup(json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _files(part: Part) -> Iterator[Path]:
    frames = part.film.frames if part.film else ()
    for cases in (*frames, part.wall.cases if part.wall else ()):
        for case in cases:
            yield from (case.reference,) if case.reference else ()
            yield from (picture.file for picture in case.pictures if picture)


def _meanings(parts: Sequence[Part]) -> list[tuple[str, str]]:
    shown = {row.metric for part in parts for table in part.tables for row in table.rows}
    return [(labels.label(metric), text) for metric, text in labels.MEANINGS.items() if metric in shown]


def _view(part: Part, album: Album) -> dict[str, Any]:
    """What the template shows of a part."""
    return {
        "part": part,
        "tables": [_table(table, part) for table in part.tables],
        "headline": _headline(part),
        "primary": [d for d in part.differences if d["primary"]],
        "further": [d for d in part.differences if not d["primary"]],
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
    """Where there are too many arms to show all: the arms, and selections of them by their places."""
    if not part.selections:
        return None
    kinds, places = arm_colours(part), {arm.name: place for place, arm in enumerate(part.arms)}
    return {
        "arms": [(name, kinds[name], name in part.chosen) for name in places],
        "selections": [(name, [places[arm] for arm in arms]) for name, arms in part.selections.items()],
    }


def colours(columns: Sequence[str], part: Part) -> list[str]:
    """Those of the part's arms. Of what is no arm, a first column of several is what the others are compared with:
    grey; a single other one is black or white."""
    if len(columns) <= 2:
        return ["s0", "ink"][-len(columns) :]
    known = arm_colours(part)
    return [known.get(name, f"s{(place - 1) % COUNT + 1}" if place else "s0") for place, name in enumerate(columns)]


def _table(table: Table, part: Part) -> dict[str, Any]:
    """With many models each has a line, else each metric."""
    kinds, down = colours(table.columns, part), len(table.columns) > WIDE
    shown = {
        "table": table,
        "down": down,
        "columns": list(zip(table.columns, kinds, strict=True)),
        "trained": any(row.trained_on for row in table.rows),
    }
    if down:
        by_model = zip(table.columns, kinds, zip(*(row.figures for row in table.rows), strict=True), strict=True)
        within = extent(table.rows[0].figures)
        lines = [(name, kind, figures, interval_plot(figures[:1], [kind], within)) for name, kind, figures in by_model]
        return {**shown, "lines": lines}
    rows = [(row, interval_plot(row.figures, kinds)) for row in table.rows]
    return {**shown, "changes": any(row.change for row in table.rows), "rows": rows}


def _headline(part: Part) -> list[dict[str, Any]]:
    """Up to three figures of the first table, where it compares two columns."""
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
    """(short name, value) per line under a picture; a reward and the oracle's verdict on the same thing share one."""
    scores, lines, said = picture.scores, [], set[str]()
    for rewards, oracle in VERDICTS:
        found = [name for name in (*rewards, oracle) if name in scores]
        if oracle in scores:
            reward, verdict = found[0], labels.score(oracle, scores[oracle])
            value = verdict if reward == oracle else f"{labels.score(reward, scores[reward])} {verdict}"
            lines.append((labels.short(reward), value))
            said |= {reward, oracle}
    if len(lines) == len(VERDICTS):
        said.add("joint_success")  # both of them
    return lines + [(labels.short(name), labels.score(name, scores[name])) for name in scores if name not in said]


def _cards(columns: Sequence[str], cases: Sequence[Case], part: Part, album: Album) -> dict[str, Any]:
    """Cards of one figure per column; a column that is an arm comes and goes with it."""
    places = {arm.name: place for place, arm in enumerate(part.arms)} if part.selections else {}
    hidden = {name for name in places if name not in part.chosen}
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
    shown = [place for place, column in enumerate(columns) if column not in hidden]
    return {"cards": cards, "width": 1 + len(shown), "last": shown[-1] if shown else 0}


def _frames(film: Film | None, album: Album) -> Mapping[str, Any] | None:
    """What the script needs: per stop and case and column a picture's address and its scores."""
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
    """What cards are put in order by: [case][column][metric], and the names of both."""
    if wall is None:
        return None
    pictures = [[picture.scores if picture else {} for picture in case.pictures] for case in wall.cases]
    metrics = list(dict.fromkeys(name for case in pictures for scores in case for name in scores))
    scores = [
        [[None if (value := each.get(name)) is None else round(value, 5) for name in metrics] for each in case]
        for case in pictures
    ]
    return {"metrics": [labels.label(name) for name in metrics], "columns": wall.columns, "scores": scores}
