"""The charts of a part, each with a sentence that explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from markupsafe import Markup

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.compare.front import better_than_base
from customized_grpo.report.charts import Line, Owner, Track, line_chart, plane, step_chart
from customized_grpo.report.content import Arm, Part
from customized_grpo.report.labels import YES_OR_NO, is_trained, label
from customized_grpo.report.learning import held_out_metrics, series, step_pulls

Log = Literal["updates", "held_out"]
IDENTITY, PROMPT, BOTH = "s1", "s2", "s3"
COLOURS = {
    **dict.fromkeys(("identity_reward", "reward_identity", "oracle_identity", "saturated_identity"), IDENTITY),
    **dict.fromkeys(("prompt_reward", "reward_prompt", "oracle_prompt", "saturated_prompt"), PROMPT),
    **dict.fromkeys(("joint_success", "joint_calibrated", "both_good"), BOTH),
    **dict.fromkeys(("both_bad",), "s0"),
}
COUNT = 7  # colours for arms, in the style sheet
SMOOTH = 10  # updates, for figures of single training batches
PLANES = (("identity_reward", "prompt_reward"), ("oracle_identity", "oracle_prompt"))


@dataclass(frozen=True)
class Figure:
    title: str
    sentence: str
    chart: Markup


@dataclass(frozen=True)
class Panel:
    """What a chart shows: of one run several figures, a colour each; of several arms one figure, a colour per arm."""

    title: str
    sentence: str
    names: Mapping[str, str]  # figure -> its name next to the line
    bounds: tuple[float, float] | None = None
    rule: tuple[float, str] | None = None


LEARNING = (
    Panel(
        "Rewards of the training groups",
        f"Mean reward of the images that each update learned from; the strong line is a mean over {SMOOTH} updates.",
        {"reward_identity": "identity", "reward_prompt": "prompt"},
    ),
)
LEVEL = Panel(
    "Level of the weights",
    "The prompt's mean weight over all steps that can be trained; it follows training, as weighting.balance says.",
    {"level": "prompt weight"},
    (0, 1),
)
CONFLICT = (
    Panel(
        "Do the rewards agree on what is good?",
        "Share of images that are above their group's average on both rewards, on one of them, or on neither; with "
        "independent rewards, half of the images are above on one alone.",
        {"both_good": "both good", "conflict": "conflict", "both_bad": "both bad"},
        (0, 1),
        (0.5, "chance"),
    ),
    Panel(
        "Correlation inside groups",
        "Below zero, images that score high on one reward score low on the other, so that their sum cancels out.",
        {"correlation": "correlation"},
        (-1, 1),
        (0, "independent"),
    ),
    Panel(
        "Groups without signal",
        "Share of groups in which a reward hardly varies, so that its advantages are noise.",
        {"saturated_identity": "identity", "saturated_prompt": "prompt"},
        (0, 1),
    ),
    LEVEL,
)
CONFLICT_OF_ARMS = (
    Panel(
        "Conflict beyond chance",
        "Share of images that are above their group's average on one reward and below it on the other, minus the half "
        "expected of independent rewards.",
        {"conflict_excess": ""},
        rule=(0, "chance"),
    ),
    Panel(
        "Correlation inside groups",
        "Below zero, images that score high on one reward score low on the other, so that their sum cancels out.",
        {"correlation": ""},
        rule=(0, "independent"),
    ),
    Panel("Both good", "Share of images above their group's average on both rewards at once.", {"both_good": ""}),
    Panel("Both bad", "Share of images above their group's average on neither reward.", {"both_bad": ""}),
    replace(LEVEL, names={"level": ""}),
)


def arm_colours(part: Part) -> dict[str, str]:
    """A colour per arm, and a dash pattern if there are more arms than colours; selected arms get the first ones."""
    names = dict.fromkeys([*part.selected, *(arm.name for arm in part.arms)])
    return {name: f"s{n % COUNT + 1}" + (f" d{n // COUNT}" if n >= COUNT else "") for n, name in enumerate(names)}


def _owners(part: Part) -> dict[str, Owner]:
    return {arm.name: Owner(place, arm.name in part.selected) for place, arm in enumerate(part.arms)}


def learning_figures(part: Part) -> list[Figure]:
    """Held-out cases first, then the training groups."""
    arms = part.arms
    metrics = held_out_metrics(arms)
    rewards = [metric for metric in metrics if _is_reward(metric)]
    oracle = [metric for metric in metrics if metric in YES_OR_NO]
    others = [metric for metric in metrics if metric not in (*rewards, *oracle)]
    if len(arms) == 1:
        bands = f"Bands: 95 % intervals over {'seeds' if len(arms[0].runs) > 1 else 'cases'}."
        panels = [
            Panel("Judged by the oracle", f"Held-out cases, metrics never trained on. {bands}", _named(oracle)),
            Panel("Rewards on held-out cases", f"The trained rewards, on new subjects. {bands}", _named(rewards)),
            *(Panel(label(metric), f"Held-out cases. {bands}", {metric: label(metric)}) for metric in others),
        ]
        figures = [_of_one(arms[0], "held_out", panel) for panel in panels]
        figures += [_of_one(arms[0], "updates", panel) for panel in LEARNING]
    else:
        figures = [
            _of_arms(part, "held_out", Panel(label(metric), f"{_about(metric)}{_bands(arms)}", {metric: ""}))
            for metric in [*oracle[::-1], *rewards, *others]
        ]
    return [figure for figure in figures if figure]


def _is_reward(metric: str) -> bool:
    return metric.endswith("_reward")


def _named(metrics: Sequence[str]) -> dict[str, str]:
    return {metric: label(metric).removesuffix(" reward") for metric in metrics}


def _about(metric: str) -> str:
    kind = ", trained on" if is_trained(metric) else ", never trained on" if metric in YES_OR_NO else ""
    return f"Held-out cases{kind}."


def _bands(arms: Sequence[Arm]) -> str:
    return " Bands: 95 % intervals over seeds, cut off at the frame." if any(len(arm.runs) > 1 for arm in arms) else ""


def conflict_figures(part: Part) -> list[Figure]:
    arms = part.arms
    if len(arms) != 1:
        of_arms = [_of_arms(part, "updates", panel) for panel in CONFLICT_OF_ARMS]
        return [figure for figure in of_arms if figure]
    figures = [_of_one(arms[0], "updates", panel) for panel in CONFLICT]
    pulls = step_pulls(arms[0].runs[0])
    if pulls:
        title = "Which step pulls where"
        sentence = (
            "How strongly each denoising step pulls on the model, and toward which reward: its weight times the size "
            "of its gradient, averaged over the run. The strongest step is 1."
        )
        figures.append(Figure(title, sentence, step_chart(title, pulls, ("prompt", "identity"))))
    return [figure for figure in figures if figure]


def _of_one(arm: Arm, part: Log, panel: Panel) -> Figure | None:
    lines = []
    for metric, name in panel.names.items():
        smooth = SMOOTH if part == "updates" else 1
        smoothed, raw = series(arm, part, metric, smooth), series(arm, part, metric) if smooth > 1 else None
        if smoothed:
            unchanged = raw is None or len(smoothed.updates) == len(raw.updates)  # too few rows to average
            lines.append(Line(name, COLOURS.get(metric, "ink"), smoothed, None if unchanged else raw))
    return Figure(panel.title, panel.sentence, _chart(panel, lines)) if lines else None


def _of_arms(part: Part, log: Log, panel: Panel) -> Figure | None:
    kinds, owners, (metric,) = arm_colours(part), _owners(part), panel.names
    by_arm = {arm.name: series(arm, log, metric, SMOOTH if log == "updates" else 1) for arm in part.arms}
    lines = [Line(name, kinds[name], of_arm, owner=owners[name]) for name, of_arm in by_arm.items() if of_arm]
    return Figure(panel.title, panel.sentence, _chart(panel, lines)) if lines else None


def _chart(panel: Panel, lines: Sequence[Line]) -> Markup:
    return line_chart(panel.title, lines, bounds=panel.bounds, rule=panel.rule)


def plane_figures(part: Part) -> list[Figure]:
    """Identity against prompt: a point for each evaluation or finished arm, a path for each training."""
    ended = part.kind == "Comparison" or not (part.arms or part.probe)
    figures = _points(part) if part.tables and ended else []
    several, title_of_paths = len(part.arms) > 1, "During training" if figures else "Identity against prompt"
    kinds, owners = arm_colours(part), _owners(part)
    for identity, prompt in PLANES:
        tracks = [
            Track(arm.name, kinds[arm.name], points, owners[arm.name])
            if several
            else Track(f"update {points[-1][0]}", "ink", points)
            for arm in part.arms
            if (points := _path(arm, identity, prompt))
        ]
        if tracks:
            what = "rewards" if _is_reward(identity) else "judged by the oracle"
            title = f"{title_of_paths}: {what}"
            sentence = (
                "From the base (hollow) to the last evaluation (filled), on held-out cases; up and right is better."
            )
            figures.append(Figure(title, sentence, plane(title, tracks, label(identity), label(prompt))))
    return figures


def _path(arm: Arm, identity: str, prompt: str) -> list[tuple[int, Estimate, Estimate]]:
    first, second = series(arm, "held_out", identity), series(arm, "held_out", prompt)
    known = dict(zip(second.updates, second.values, strict=True))
    return [(u, a, known[u]) for u, a in zip(first.updates, first.values, strict=True) if u in known]


def _points(part: Part) -> list[Figure]:
    """A point for each model: by its trained rewards, which come first in the table, and by the oracle."""
    rows = {row.metric: row for table in part.tables for row in table.rows}
    columns, owners = part.tables[0].columns, _owners(part)
    kinds = arm_colours(part) if part.arms else {name: f"s{n % COUNT + 1}" for n, name in enumerate(columns[1:])}
    trained = [row.metric for row in rows.values() if row.trained_on][:2]
    figures = []
    pairs = dict.fromkeys([tuple(trained if part.arms else tuple(rows)[:2]), PLANES[1]])
    for identity, prompt in (pair for pair in pairs if len(pair) == 2 and {*pair} <= set(rows)):
        values = zip(columns, rows[identity].figures, rows[prompt].figures, strict=True)
        tracks = [
            Track(name, kinds.get(name, "s0"), [(None, a, b)], owners.get(name)) for name, a, b in values if a and b
        ]
        if tracks:
            what = "Test cases" if part.arms else "One point per evaluation"
            figures += _complete_and_enlarged(
                part, tracks, f"{what}, with 95 % intervals", label(identity), label(prompt)
            )
    return figures


def _complete_and_enlarged(
    part: Part, tracks: Sequence[Track], what: str, x_name: str, y_name: str
) -> Iterator[Figure]:
    """The plane with all points and, for several arms, those that beat the base in both figures, enlarged."""
    title, sentence = f"{x_name} against {y_name}", f"{what}; up and right is better."
    points = {track.name: (track.points[-1][1].mean, track.points[-1][2].mean) for track in tracks}
    front = [points[name] for name in part.front if name in points]
    if part.front:
        sentence += f" The dotted line joins {', '.join(part.front)}: the trade-off that one weight sets."
    yield Figure(title, sentence, plane(title, tracks, x_name, y_name, front))
    better = better_than_base(points) if part.arms else {}
    if better:
        title = f"{title}, enlarged"
        sentence = "The arms that beat the base in both. Intervals are cut off at the frame."
        near = [track for track in tracks if track.name in better]
        yield Figure(title, sentence, plane(title, near, x_name, y_name, front, close=True))
