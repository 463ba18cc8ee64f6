"""The part of a report that shows a probe, and its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.report.cases import read_estimate
from customized_grpo.report.charts import Line, line_chart
from customized_grpo.report.content import MetricRow, Part, Table
from customized_grpo.report.figures import COLOURS, Figure
from customized_grpo.report.formats import ProbeShape, read_json
from customized_grpo.report.labels import label
from customized_grpo.report.learning import Series

PROBE = "probe.json"


def probe_part(folder: Path) -> Part:
    content = read_json(folder / PROBE, ProbeShape)
    config, steps = content["config"], content["steps"]
    rows = [
        MetricRow(name, False, [read_estimate(step["spread"].get(name)) for step in steps])
        for name in steps[0]["spread"]
    ]
    noise, model = config["noise"], config["model"]["path"]
    facts = [
        f"{model}{' with a trained adapter' if content['adapter'] else ''}",
        f"{content['prompts']} prompts, {content['draws']} draws each",
        f"{noise['dynamics']} noise of level {noise['level']:g}",
    ]
    fit = content["fit"]
    note = f"No schedule: {content['obstacle']}." if fit is None else fit["verdict"]
    columns = [f"{step['step']}, sigma {step['sigma']:.2f}" for step in steps]
    title = "How much noise at one step changes each figure: spread within a prompt"
    table = Table(title, columns, rows, [note, "Intervals: 95 %, over prompts."], column_kind="step")
    return Part("Probe", "Which step decides what", facts, [table], probe=content)


def probe_figures(content: Mapping[str, Any]) -> list[Figure]:
    """What each step decides, which reward it should learn from, and how strongly it pulls on the update."""
    steps = content["steps"]
    spreads = {
        name: _relative([read_estimate(step["spread"].get(name)) for step in steps])
        for name in ("identity_reward", "prompt_reward")
    }
    pulls = {
        "on the velocity": _relative([Estimate(*[step["gradient_factor"]] * 3) for step in steps]),
        "on the adapter": _relative([read_estimate(step["gradient_norm"]) for step in steps]),
    }
    weights = {
        "measured share": [read_estimate(step["prompt_share"]) for step in steps],
        "by the oracle": [read_estimate(step["oracle_prompt_share"]) for step in steps],
        "fitted weight": [_exact(step["fitted_weight"]) for step in steps],
        "present weight": [_exact(step["present_weight"]) for step in steps],
    }
    named = {label(name).removesuffix(" reward"): values for name, values in spreads.items()}
    kinds = [COLOURS[name] for name in spreads]
    figures = [
        _figure(
            "What does a step decide?",
            "Spread of a reward within a prompt from noise at that step alone, divided by its mean over the steps.",
            dict(zip(named, zip(kinds, named.values(), strict=True), strict=True)),
        ),
        _figure(
            "Which reward should it learn from?",
            "The prompt's share of what a step decides, and the prompt's weight at that step; identity has the rest.",
            dict(zip(weights, zip(("s2", "s7", "s3", "s0"), weights.values(), strict=True), strict=True)),
            (0, 1),
        ),
        _figure(
            "How strongly does it pull on the update?",
            "Gradient of a step's log-probability, divided by its mean over the steps: a step with a large gradient "
            "counts for more than its weight in the schedule.",
            dict(zip(pulls, zip(("s0", "ink"), pulls.values(), strict=True), strict=True)),
        ),
    ]
    return [figure for figure in figures if figure]


def _relative(values: Sequence[Estimate | None]) -> list[Estimate | None]:
    """Divided by the mean over the steps; figures that are all zero stay zero."""
    known = [value.mean for value in values if value]
    mean = (sum(known) / len(known) if known else 0.0) or 1.0
    return [value and Estimate(value.mean / mean, value.low / mean, value.high / mean) for value in values]


def _exact(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, float("nan"), float("nan"))


def _figure(
    title: str,
    sentence: str,
    series: Mapping[str, tuple[str, Sequence[Estimate | None]]],
    bounds: tuple[float, float] | None = None,
) -> Figure | None:
    lines = []
    for name, (colour, values) in series.items():
        known = [(step, value) for step, value in enumerate(values) if value]
        if known:
            lines.append(Line(name, colour, Series([s for s, _ in known], [value for _, value in known])))
    return Figure(title, sentence, line_chart(title, lines, bounds=bounds, x_name="step")) if lines else None
