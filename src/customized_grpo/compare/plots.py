"""The plots of a comparison: where arms end, their paths there, curves over updates, conflict inside groups.

An arm has one colour and one marker in all of them, by its place in the file, whether or not the others are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from customized_grpo.compare.comparison import BASE, Comparison, Results
from customized_grpo.compare.front import ORACLES, Point, crowd, planes
from customized_grpo.files.durable import replacing
from customized_grpo.measure.intervals import Estimate, over_seeds

Figures = Mapping[str, Mapping[str, Estimate]]  # arm -> test metric -> its mean over seeds
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # trained arm -> results of its finished seeds

# Markers are coprime in number to the colours, so that 198 arms differ in one of the two.
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf"),
    *("#1a237e", "#f2b705", "#00563f", "#7b1113", "#c51b8a", "#000000", "#ff8a80", "#7cb518", "#80b1ff"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
LARGER = {"*": 1.5, "p": 1.2}  # drawn larger, because they look smaller
FRONT = "front"  # what the legend calls its line
GREY, INK = "#8a8a8a", "#333333"
WIDTH = 11.0  # inches; at 120 dots per inch 1,320 pixels, readable on a page of 1,200
DOTS = 120
IN_A_COLUMN = 20  # names above each other in a legend beside all axes


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str

    def marked(self, points: float) -> dict[str, Any]:
        """For a line of matplotlib: the marker so many points large, with a fine edge where it lies on others."""
        size = points * LARGER.get(self.marker, 1.0)
        return {"marker": self.marker, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.5}


def write_plots(comparison: Comparison, results: Results, figures: Figures) -> None:
    """Write every plot that there is something for; one that the same file no longer asks for goes."""
    made = plots(comparison, results, figures)
    for name, figure in made.items():
        with replacing(comparison.output / name) as aside:
            figure.savefig(aside, dpi=DOTS, format="png")
    for name in {"plane.png", "paths.png", "curves.png", "conflict.png"} - {*made}:
        (comparison.output / name).unlink(missing_ok=True)


def plots(comparison: Comparison, results: Results, figures: Figures) -> dict[str, Figure]:
    """By the names of their files, those that there is something for."""
    styles = _styles(comparison)
    arms = {arm: list(results[arm].values()) for arm in comparison.arms if arm in results}
    drawn = {"plane.png": _plane(comparison, figures, styles), "paths.png": _paths(arms, styles)}
    selections = {f"-{name}": chosen for name, chosen in comparison.selections.items()} or {"": tuple(arms)}
    for suffix, chosen in selections.items():
        part = {arm: arms[arm] for arm in chosen if arm in arms}
        drawn |= {f"curves{suffix}.png": _curves(part, styles), f"conflict{suffix}.png": _conflict(part, styles)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _styles(comparison: Comparison) -> dict[str, Style]:
    colours, markers = cycle(COLOURS), cycle(MARKERS)
    return {BASE: Style(GREY, "o")} | {arm: Style(next(colours), next(markers)) for arm in comparison.arms}


# --- where arms end, and how they get there --------------------------------------------------------------------------


def _plane(comparison: Comparison, figures: Figures, styles: Mapping[str, Style]) -> Figure | None:
    """Identity against prompt on test cases: a point per arm with its 95 % intervals, and the front as a line.

    Beside it the arms that better the base in both, large.
    """
    pairs = planes(comparison, figures)
    if not pairs or {*figures} <= {BASE}:
        return None
    points = {pair: {arm: (each[pair[0]].mean, each[pair[1]].mean) for arm, each in figures.items()} for pair in pairs}
    views = [(pair, close) for pair in pairs for close in (None, (*crowd(points[pair]).values(),)) if close != ()]
    figure, grid = _grid(len(views), columns=2, height=4.4)
    front = [arm for arm in comparison.front if arm in figures]
    for axes, (pair, close) in zip(grid, views, strict=True):
        for arm in (arm for arm in styles if arm in figures):
            x, y = (figures[arm][metric] for metric in pair)
            look = {"color": styles[arm].colour, "linestyle": "none", **styles[arm].marked(8)}
            axes.errorbar(x.mean, y.mean, _reach(y), _reach(x), label=arm, elinewidth=1, zorder=3, **look)
        if len(front) > 1:
            line = [[figures[arm][metric].mean for arm in front] for metric in pair]
            axes.plot(*line, color=INK, linewidth=1.2, linestyle="--", label=FRONT, zorder=2)
        axes.set_xlabel(pair[0])
        axes.set_ylabel(pair[1])
        if close:
            axes.set_xlim(_around(close, 0))
            axes.set_ylim(_around(close, 1))
            axes.set_title("better than the base in both", fontsize=10)
    figure.suptitle("Test cases after training: mean over seeds, 95 % t intervals", fontsize=11)
    _legend(figure, len(grid), in_a_cell=20)
    return figure


def _around(points: Sequence[Point], axis: int) -> tuple[float, float]:
    """Limits that show all of them, with some room."""
    low, high = (limit(point[axis] for point in points) for limit in (min, max))
    room = max(0.15 * (high - low), 0.005)
    return low - room, high + room


def _reach(estimate: Estimate) -> list[list[float]] | None:
    """How far the interval reaches to both sides; None for a single seed."""
    if np.isnan(estimate.low):
        return None
    return [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]


def _paths(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Identity against prompt on held-out cases: each arm's path from the base (hollow) to its end (full)."""
    pairs = [pair for pair in (("identity_reward", "prompt_reward"), ORACLES) if {*pair} <= {*_watched(arms)}]
    if not pairs:
        return None
    figure, grid = _grid(len(pairs), columns=2, height=4.4)
    for axes, pair in zip(grid, pairs, strict=True):
        for arm, runs in arms.items():
            by_update = [dict(zip(*_band(runs, "held_out", metric)[:2], strict=True)) for metric in pair]
            shared = [update for update in by_update[0] if update in by_update[1]]
            x, y = ([each[update] for update in shared] for each in by_update)
            end = {"markevery": [len(x) - 1] if x else [], **styles[arm].marked(8)}
            axes.plot(x, y, label=arm, color=styles[arm].colour, linewidth=1, **end)
            axes.plot(x[:1], y[:1], color=GREY, marker="o", markersize=8, fillstyle="none", linestyle="none")
        axes.set_xlabel(_words(pair[0]))
        axes.set_ylabel(_words(pair[1]))
    figure.suptitle(
        "Held-out cases over training: from the base (hollow) to the end (full), mean over seeds", fontsize=11
    )
    _legend(figure, len(grid), in_a_cell=20)
    return figure


# --- curves over updates ---------------------------------------------------------------------------------------------


def _curves(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Held-out rewards and metrics over updates: mean over seeds and its 95 % band."""
    metrics = _watched(arms)
    if not metrics:
        return None
    return _panels(arms, styles, "held_out", metrics, lambda axes, metric: axes.set_title(_words(metric), fontsize=11))


def _watched(arms: Runs) -> list[str]:
    """Metrics of the evaluations on the way."""
    rows = [row for runs in arms.values() for run in runs for row in run["held_out"]]
    return list(dict.fromkeys(name for row in rows for name in row if name != "update"))


def _conflict(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Inside the training groups: quadrant excess over independence, and correlation of the rewards."""
    if not any(run["updates"] for runs in arms.values() for run in runs):
        return None
    titles = {
        "conflict_excess": "conflict beyond chance (share of images - .5)",
        "correlation": "correlation of the rewards inside groups",
    }

    def label(axes: Axes, metric: str) -> None:
        axes.set_title(titles[metric], fontsize=11)
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")

    return _panels(arms, styles, "updates", list(titles), label, smooth=10)


def _panels(
    arms: Runs,
    styles: Mapping[str, Style],
    part: str,
    metrics: Sequence[str],
    label: Callable[[Axes, str], object],
    smooth: int = 1,
) -> Figure:
    figure, grid = _grid(len(metrics), columns=min(len(metrics), 3), height=2.9)
    for axes, metric in zip(grid, metrics, strict=True):
        for arm, runs in arms.items():
            updates, mean, low, high = _band(runs, part, metric, smooth)
            style, every = styles[arm], max(len(updates) // 10, 1)
            look = {"color": style.colour, "markevery": every, **style.marked(6)}
            axes.plot(updates, mean, label=f"{arm} ({len(runs)})", linewidth=1.5, **look)
            axes.fill_between(updates, low, high, color=style.colour, alpha=0.15, linewidth=0)
        label(axes, metric)
        axes.set_xlabel("update")
    _legend(figure, len(grid), "arm (seeds)")
    return figure


def _band(
    runs: Sequence[Mapping[str, Any]], part: str, metric: str, smooth: int = 1
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


# --- what they have in common ----------------------------------------------------------------------------------------


def _grid(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many axes in rows; all figures are equally wide, so that their fonts are equally large on a page."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in grid[panels:]:
        axes.set_axis_off()
    for axes in grid[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid[:panels]


def _legend(figure: Figure, panels: int, title: str | None = None, in_a_cell: int = 12) -> None:
    """Beside the axes, because what it names may lie anywhere in them.

    In a free place of the grid, where there is one and it holds so many names.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Lines come before points, whatever was drawn first: the front belongs behind the arms.
    order = sorted(range(len(labels)), key=lambda n: labels[n] == FRONT)
    named = [handles[n] for n in order], [labels[n] for n in order]
    look: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "title": title, "alignment": "left"}
    if len(figure.axes) > panels and len(labels) <= in_a_cell:
        figure.axes[panels].legend(*named, loc="upper left", borderaxespad=0, **look)
    else:
        figure.legend(*named, loc="outside right upper", ncols=-(-len(labels) // IN_A_COLUMN), **look)


def _words(metric: str) -> str:
    return metric.replace("_", " ")
