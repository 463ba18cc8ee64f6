"""The parts of the page as HTML. Templates escape every text; pictures are inside, as data URIs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from math import isnan, nan
from typing import Any

from jinja2 import PackageLoader
from PIL import Image

from customized_grpo.data import Sample
from customized_grpo.report import labels
from customized_grpo.report.album import Album, Thumbnail, thumbnail
from customized_grpo.report.content import Part
from customized_grpo.report.figures import COLOURS
from customized_grpo.report.page import asset, data_of, templates, view_of
from customized_grpo.run.logs import as_json
from customized_grpo.studio.generating import Made, Trial
from customized_grpo.studio.opened import Opened

SMALL = ((192, 75),)  # side in pixels and WebP quality: of references to choose from,
STEP = ((512, 75),)  # of what the model expects at a step,
LARGE = ((1024, 90),)  # and of finished pictures
ENOUGH = 1_000_000  # bytes of one picture

_templates = templates(PackageLoader("customized_grpo.studio", "."))


def head() -> str:
    """Style and script of the page, for its head. The report's rules apply inside elements of the class "report"."""
    colours, rules = asset("style.css").split("\n\n", 1)
    own = {name: files("customized_grpo.studio").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")}
    style = f"{colours}\n.report {{\n{rules}\n}}\n{own['page.css']}"
    return f"<style>{style}</style>\n<script>{asset('widgets.js')}\n{own['page.js']}</script>"


def _render(macro: str, *arguments: Any) -> str:
    module: Any = _templates.get_template("page.html").module
    return str(getattr(module, macro)(*arguments))


def header(line: str) -> str:
    return _render("header", line)


def problem(text: str) -> str:
    """One line about what went wrong; nothing for an empty text."""
    return _render("problem", text) if text else ""


def hint(text: str) -> str:
    """What to do where there is nothing to show yet."""
    return _render("hint", text)


# --- the first tab ---------------------------------------------------------------------------------------------------


def chosen(sample: Sample | None) -> str:
    """The references that the model will see."""
    pictures = [] if sample is None else sample.reference_images()
    return _render("chosen", [_encoded(picture, STEP) for picture in pictures])


def choices(samples: Sequence[Sample]) -> str:
    """Small references to choose from."""
    if not samples:
        return ""
    pictures = [_encoded(sample.reference_images()[0], SMALL) for sample in samples]
    return _render("choices", list(zip(samples, pictures, strict=True)))


def result(trial: Trial, checkpoint: str | None) -> str:
    """Base and tuned, and the slider through the denoising steps; without a checkpoint the base."""
    made = [("base", "", trial.base)]
    if checkpoint is not None:
        made.append(("tuned", checkpoint, trial.tuned[checkpoint]))
    shown = [(name, of, _encoded(each.picture, LARGE), _verdicts(each)) for name, of, each in made]
    last = len(trial.base.frames)
    frames = [[[[_encoded(each.frames[step], STEP).uri] for _, _, each in made]] for step in range(last - 1)]
    frames.append([[[picture.uri] for _, _, picture, _ in shown]])
    data = {"try": {"film": {"updates": list(range(1, last + 1)), "frames": frames}}}
    return _render("result", trial, shown, last, json.dumps(data))


def scores(trial: Trial, checkpoint: str | None) -> str:
    """The scores of base and tuned as bars, and why some are missing."""
    tuned = None if checkpoint is None else trial.tuned[checkpoint]
    return _render("scores", _score_rows(trial.base, tuned, trial.trained_on), trial.notes)


def _verdicts(made: Made) -> list[tuple[str, str]]:
    """The oracle's ticks and crosses; that both are right needs no third one."""
    known = [name for name in labels.YES_OR_NO if not isnan(made.scores.get(name, nan))]
    shown = [name for name in known if len(known) < len(labels.YES_OR_NO) or name != "joint_success"]
    return [(labels.short(name), labels.score(name, made.scores[name])) for name in shown]


def _score_rows(base: Made, tuned: Made | None, trained_on: frozenset[str]) -> list[dict[str, Any]]:
    """One row per score: bars between 0 and 1, or wider if the scores need it, and the change."""
    rows = []
    for name in dict.fromkeys([*base.scores, *(tuned.scores if tuned else ())]):
        if name in labels.YES_OR_NO:
            continue
        values = [made.scores.get(name, nan) for made in (base, tuned) if made is not None]
        known = [value for value in values if not isnan(value)]
        low, high = min([0.0, *known]), max([1.0, *known])
        change = values[-1] - values[0] if len(known) == 2 else None
        rows.append(
            {
                "name": labels.label(name),
                "trained": name in trained_on,
                "colour": COLOURS.get(name, "ink"),
                "values": [
                    (labels.score(name, value), None if isnan(value) else (value - low) / (high - low))
                    for value in values
                ],
                "change": None if change is None else labels.number(change, "+", digits=2),
                "way": "" if not round(change or 0, 2) else "up" if change and change > 0 else "down",
            }
        )
    return rows


def checkpoints(names: Sequence[str], current: str | None) -> str:
    """The slider through the checkpoints; nothing if there is no choice."""
    return _render("checkpoints", list(names), current) if current is not None and len(names) > 1 else ""


def _encoded(picture: Image.Image, fitted: Sequence[tuple[int, int]]) -> Thumbnail:
    return thumbnail(picture, ENOUGH, fitted)


# --- the tabs of a run -----------------------------------------------------------------------------------------------


def run(opened: Opened, part: Part, album: Album) -> str:
    """Progress, film, curves and warnings of a run, as far as it has got."""
    view = view_of(part, album)
    return _render("run", view, _progress(opened, part), _data(view))


def cases(part: Part, album: Album) -> str:
    """The held-out cases: the reference, the prompt, base, tuned and their scores."""
    view = view_of(part, album)
    return _render("cases", view, _data(view)) if view["wall"] else hint("The run has not evaluated any case yet.")


def _data(view: Mapping[str, Any]) -> str:
    return json.dumps({"0": as_json(data_of(view))}, ensure_ascii=False)


def _progress(opened: Opened, part: Part) -> dict[str, Any]:
    """How far the run is; the time of its last entry shows whether it still goes on."""
    rows = part.arms[0].runs[0].updates
    update, total = rows[-1]["update"] if rows else 0, opened.updates
    log = None if opened.run is None else opened.run / "metrics.jsonl"
    written = time.localtime(log.stat().st_mtime) if log is not None and log.is_file() else None
    return {
        "update": update,
        "total": total,
        "finished": update >= total,
        "written": None if written is None else time.strftime("%H:%M:%S" if _today(written) else "%Y-%m-%d", written),
    }


def _today(moment: time.struct_time) -> bool:
    return moment[:3] == time.localtime()[:3]
