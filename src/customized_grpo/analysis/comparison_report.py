"""What a comparison shows: comparison.json, a table, and three plots, from the results of the finished arms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from customized_grpo.analysis.comparison import BASE, OVER_TRAINING, Comparison
from customized_grpo.analysis.intervals import Difference, Estimate, holm, over_seeds, paired_difference
from customized_grpo.run_directory import write_text

Results = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> its result.json


@dataclass(frozen=True)
class Tested:
    """One difference between two arms; `corrected` is Holm's p among all that are not primary."""

    arm: str
    against: str
    metric: str
    primary: bool
    difference: Difference
    corrected: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "against": self.against,
            "metric": self.metric,
            "primary": self.primary,
            **self.difference.estimate.as_dict(),
            "p": self.difference.p_value,
            "p_holm": self.corrected,
            "seeds": self.difference.pairs,
        }


def write_report(comparison: Comparison, results: Results) -> str:
    """Write every file of the report for the arms that are finished; returns the table."""
    if not results:
        return "no arm is finished yet"
    figures = {arm: _over_seeds(by_seed) for arm, by_seed in results.items()}
    tests = differences(comparison, results)
    content = {
        "arms": {
            arm: {
                "settings": comparison.lines(arm),
                "seeds": {str(seed): result["test"] for seed, result in by_seed.items()},
                "figures": {metric: figure.as_dict() for metric, figure in figures[arm].items()},
                "warnings": {str(seed): result["warnings"] for seed, result in by_seed.items()},
            }
            for arm, by_seed in results.items()
        },
        "differences": [test.as_dict() for test in tests],
        "settings": comparison.model_dump(mode="json", exclude={"output"}),
        "finished": sum(map(len, results.values())),
        "runs": len(comparison.jobs),
    }
    text = json.dumps(_without_nan(content), indent=2) + "\n"
    write_text(comparison.output / "comparison.json", text)
    table = "\n\n".join([_arm_table(comparison, figures, results), _test_table(tests)])
    write_text(comparison.output / "table.md", table + "\n")
    for name, draw in (("curves.png", _curves), ("plane.png", _plane), ("conflict.png", _conflict)):
        figure = draw(results)
        if figure is not None:
            aside = comparison.output / f".{name}"
            figure.savefig(aside, dpi=120, format="png")
            aside.replace(comparison.output / name)
    return table


def _over_seeds(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Estimate]:
    columns = {metric: _column(by_seed, metric) for metric in next(iter(by_seed.values()))["test"]}
    return {metric: over_seeds(list(values.values())) for metric, values in columns.items() if values}


def _column(by_seed: Mapping[int, Mapping[str, Any]], metric: str) -> dict[int, float]:
    return {seed: each["test"][metric] for seed, each in by_seed.items() if each["test"].get(metric) is not None}


def differences(comparison: Comparison, results: Results) -> list[Tested]:
    """Every finished arm minus each reference arm on every metric, paired by seed; the primary ones come first."""
    primary = comparison.primary
    found: list[tuple[bool, str, str, str, Difference]] = []
    for against in primary.against:
        for arm in comparison.arms:
            if arm == against or arm not in results or against not in results:
                continue
            tested = list(next(iter(results[arm].values()))["test"])
            for metric in shown(comparison, tested):
                first, second = (_column(results[name], metric) for name in (arm, against))
                if {*first} & {*second}:
                    is_primary = (arm, metric) == (primary.arm, primary.metric)
                    found.append((is_primary, arm, against, metric, paired_difference(first, second)))
    others = [difference.p_value for is_primary, *_, difference in found if not is_primary]
    corrected = iter(holm(others))
    tests = [
        Tested(arm, against, metric, is_primary, difference, None if is_primary else next(corrected))
        for is_primary, arm, against, metric, difference in found
    ]
    return sorted(tests, key=lambda test: not test.primary)


def shown(comparison: Comparison, metrics: Iterable[str]) -> list[str]:
    """Those metrics that the file wants to be compared, the primary one among them; without a wish: all tested."""
    wanted = {comparison.primary.metric, *comparison.compare_on}
    everything = not comparison.compare_on
    return [m for m in dict.fromkeys(metrics) if m in wanted or (everything and not m.endswith(OVER_TRAINING))]


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables, in Markdown ---------------------------------------------------------------------------------------------


def _arm_table(comparison: Comparison, figures: Mapping[str, Mapping[str, Estimate]], results: Results) -> str:
    metrics = shown(comparison, [metric for each in figures.values() for metric in each])
    lines = [f"| arm | seeds | {' | '.join(metrics)} |", "| --- " * (len(metrics) + 2) + "|"]
    for arm, found in figures.items():
        cells = [_cell(found[metric]) if metric in found else "" for metric in metrics]
        lines.append(f"| {arm} | {len(results[arm])} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Means over seeds with 95 % t intervals; every seed is tested on cases of its own."])


def _test_table(tests: Sequence[Tested]) -> str:
    if not tests:
        return "No two arms share a finished seed yet."
    lines = ["| difference | metric | mean [95 %] | p | Holm | seeds |", "| --- | --- | --- | --- | --- | --- |"]
    for test in tests:
        corrected = "primary" if test.corrected is None else _p(test.corrected)
        found = test.difference
        values = f"{_cell(found.estimate, '+')} | {_p(found.p_value)} | {corrected} | {found.pairs}"
        lines.append(f"| {test.arm} - {test.against} | {test.metric} | {values} |")
    return "\n".join([*lines, "", "Paired by seed, t-test; Holm's correction over everything that is not primary."])


def _cell(figure: Estimate, sign: str = "") -> str:
    if math.isnan(figure.low):
        return f"{figure.mean:{sign}.3f}"
    return f"{figure.mean:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"


# --- plots -----------------------------------------------------------------------------------------------------------


def _trained(results: Results) -> dict[str, list[dict[str, Any]]]:
    return {arm: list(by_seed.values()) for arm, by_seed in results.items() if arm != BASE}


def _colours(arms: Sequence[str]) -> dict[str, Any]:
    return {arm: colormaps["tab10" if len(arms) <= 10 else "tab20"](number) for number, arm in enumerate(arms)}


def _curves(results: Results) -> Figure | None:
    """Held-out rewards and metrics over updates: mean over seeds and its 95 % band."""
    arms = _trained(results)
    rows = [row for runs in arms.values() for run in runs for row in run["held_out"]]
    if not rows:
        return None
    metrics = [name for name in rows[0] if name != "update"]
    return _panels(arms, "held_out", metrics, lambda axes, metric: axes.set_title(metric.replace("_", " ")))


def _conflict(results: Results) -> Figure | None:
    """Inside the training groups: quadrant excess over independence, and correlation of the rewards."""
    arms = _trained(results)
    if not any(run["updates"] for runs in arms.values() for run in runs):
        return None
    titles = {
        "conflict_excess": "conflict beyond chance (share of images - .5)",
        "correlation": "correlation of the rewards inside groups",
    }

    def label(axes: Axes, metric: str) -> None:
        axes.set_title(titles[metric])
        axes.axhline(0, color="#333333", linewidth=0.8, linestyle=":")

    return _panels(arms, "updates", list(titles), label, smooth=10)


def _panels(
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    part: str,
    metrics: Sequence[str],
    label: Callable[[Axes, str], object],
    smooth: int = 1,
) -> Figure:
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = _colours(list(arms))
    for axes, metric in zip(grid, metrics, strict=False):
        for arm, runs in arms.items():
            updates, mean, low, high = _band(runs, part, metric, smooth)
            axes.plot(updates, mean, label=f"{arm} ({len(runs)})", color=colours[arm])
            axes.fill_between(updates, low, high, color=colours[arm], alpha=0.15, linewidth=0)
        label(axes, metric)
        axes.set_xlabel("update")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    grid[0].legend(frameon=False, fontsize=8, title="arm (seeds)", title_fontsize=8)
    return figure


def _band(
    runs: Sequence[Mapping[str, Any]], part: str, metric: str, smooth: int
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Updates that all runs have, mean over runs and its 95 % interval; `smooth` averages over as many rows."""
    series = [{row["update"]: row[metric] for row in run[part] if metric in row} for run in runs]
    updates = sorted(set.intersection(*(set(each) for each in series)))
    values = np.array([[each[update] for update in updates] for each in series])
    if smooth > 1 and len(updates) >= smooth:
        kernel = np.ones(smooth) / smooth
        values = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
        updates = updates[smooth - 1 :]
    estimates = [over_seeds(column.tolist()) for column in values.T]
    mean, low, high = (np.array([getattr(each, name) for each in estimates]) for name in ("mean", "low", "high"))
    return updates, mean, low, high


def _plane(results: Results) -> Figure | None:
    """Identity against prompt on held-out cases: each arm's path from the base (hollow) to its end (full)."""
    arms = _trained(results)
    axis_pairs = list(_axis_pairs(arms))
    if not axis_pairs:
        return None
    figure = Figure(figsize=(5.2 * len(axis_pairs), 4.8), layout="constrained")
    grid = figure.subplots(1, len(axis_pairs), squeeze=False)[0]
    colours = _colours(list(arms))
    for axes, (x_metric, y_metric) in zip(grid, axis_pairs, strict=True):
        for arm, runs in arms.items():
            (_, x, _, _), (_, y, _, _) = (_band(runs, "held_out", metric, 1) for metric in (x_metric, y_metric))
            axes.plot(x, y, color=colours[arm], linewidth=1, alpha=0.7)
            axes.plot(x[:1], y[:1], marker="o", color=colours[arm], fillstyle="none")
            axes.plot(x[-1:], y[-1:], marker="o", color=colours[arm], label=arm, linestyle="none")
        axes.set_xlabel(x_metric.replace("_", " "))
        axes.set_ylabel(y_metric.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(frameon=False, fontsize=8)
    return figure


def _axis_pairs(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, str]]:
    names = {name for runs in arms.values() for run in runs for row in run["held_out"] for name in row}
    for pair in (("identity_reward", "prompt_reward"), ("oracle_identity", "oracle_prompt")):
        if {*pair} <= names:
            yield pair
