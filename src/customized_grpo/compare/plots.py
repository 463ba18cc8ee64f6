"""The plots of a comparison: where arms end, their paths there, curves over updates, conflict inside groups.

An arm has the same colour and marker in every plot, by its place in the file, however many arms are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from customized_grpo.calibration.intervals import Estimate, over_seeds
from customized_grpo.compare.comparison import BASE, Comparison, Results
from customized_grpo.compare.front import ORACLES, Point, better_than_base, planes
from customized_grpo.files.durable import replacing, saving

Figures = Mapping[str, Mapping[str, Estimate]]  # arm -> test metric -> its mean over seeds
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # trained arm -> results of its finished seeds

# 18 colours and 11 markers: the numbers are coprime, so 198 arms differ in at least one of the two.
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf"),
    *("#1a237e", "#f2b705", "#00563f", "#7b1113", "#c51b8a", "#000000", "#ff8a80", "#7cb518", "#80b1ff"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
LARGER = {"*": 1.5, "p": 1.2}  # factor of size for markers that look smaller
FRONT = "front"  # its name in the legend
GREY, INK = "#8a8a8a", "#333333"
WIDTH = 11.0  # inches; at 120 dots per inch 1,320 pixels, readable on a page of 1,200
DOTS = 120
IN_A_COLUMN = 20  # names per column of a legend next to the axes


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str

    def marked(self, points: float) -> dict[str, Any]:
        """Arguments of a matplotlib line: the marker, this many points large, with a thin white edge to set it off."""
        size = points * LARGER.get(self.marker, 1.0)
        return {"marker": self.marker, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.5}


def write_plots(comparison: Comparison, results: Results, figures: Figures) -> None:
    """Write every plot that has data; remove those of an older version of the file that are no longer wanted."""
    made = plots(comparison, results, figures)
    for name, figure in made.items():
        with replacing(comparison.output / name) as aside:
            figure.savefig(aside, dpi=DOTS, format="png")
    for name in {"plane.png", "paths.png", "curves.png", "conflict.png"} - {*made}:
        with saving(comparison.output / name):
            (comparison.output / name).unlink(missing_ok=True)


def plots(comparison: Comparison, results: Results, figures: Figures) -> dict[str, Figure]:
    """The plots that have data, by file name."""
    styles = _styles(comparison)
    arms = {arm: list(results[arm].values()) for arm in comparison.arms if arm in results}
    drawn = {"plane.png": _plane(comparison, figures, styles), "paths.png": _paths(arms, styles)}
    selections = {f"-{name}": names for name, names in comparison.selections.items()} or {"": tuple(arms)}
    for suffix, names in selections.items():
        selected = {arm: arms[arm] for arm in names if arm in arms}
        drawn[f"curves{suffix}.png"] = _curves(selected, styles)
        drawn[f"conflict{suffix}.png"] = _conflict(selected, styles)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _styles(comparison: Comparison) -> dict[str, Style]:
    colours, markers = cycle(COLOURS), cycle(MARKERS)
    return {BASE: Style(GREY, "o")} | {arm: Style(next(colours), next(markers)) for arm in comparison.arms}


# --- where arms end, and how they get there --------------------------------------------------------------------------


def _plane(comparison: Comparison, figures: Figures, styles: Mapping[str, Style]) -> Figure | None:
    """Identity against prompt on test cases: a point per arm with its 95 % intervals, and the front as a line.

    Next to each plane, enlarged: the arms that beat the base in both.
    """
    pairs = planes(comparison, figures)
    if not pairs or {*figures} <= {BASE}:
        return None
    views: list[tuple[tuple[str, str], tuple[Point, ...] | None]] = []
    for pair in pairs:
        points = {arm: (of_arm[pair[0]].mean, of_arm[pair[1]].mean) for arm, of_arm in figures.items()}
        enlarged = better_than_base(points)
        views += [(pair, None), *([(pair, (*enlarged.values(),))] if enlarged else [])]
    figure, grid = _grid(len(views), columns=2, height=4.4)
    front = [arm for arm in comparison.front if arm in figures]
    for axes, (pair, enlarged) in zip(grid, views, strict=True):
        for arm in (arm for arm in styles if arm in figures):
            x, y = (figures[arm][metric] for metric in pair)
            look = {"color": styles[arm].colour, "linestyle": "none", **styles[arm].marked(8)}
            axes.errorbar(x.mean, y.mean, _error_bar(y), _error_bar(x), label=arm, elinewidth=1, zorder=3, **look)
        if len(front) > 1:
            line = [[figures[arm][metric].mean for arm in front] for metric in pair]
            axes.plot(*line, color=INK, linewidth=1.2, linestyle="--", label=FRONT, zorder=2)
        axes.set_xlabel(pair[0])
        axes.set_ylabel(pair[1])
        if enlarged:
            axes.set_xlim(_limits(enlarged, 0))
            axes.set_ylim(_limits(enlarged, 1))
            axes.set_title("better than the base in both", fontsize=10)
    figure.suptitle("Test cases after training: mean over seeds, 95 % t intervals", fontsize=11)
    _legend(figure, len(grid), in_a_cell=20)
    return figure


def _limits(points: Sequence[Point], axis: int) -> tuple[float, float]:
    """Limits of one axis that show all points, with some margin."""
    low, high = (limit(point[axis] for point in points) for limit in (min, max))
    room = max(0.15 * (high - low), 0.005)
    return low - room, high + room


def _error_bar(estimate: Estimate) -> list[list[float]] | None:
    """Lengths of the interval below and above the mean; None for a single seed."""
    if np.isnan(estimate.low):
        return None
    return [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]


def _paths(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Identity against prompt on held-out cases: each arm's path from the base (hollow) to its end (filled)."""
    pairs = [pair for pair in (("identity_reward", "prompt_reward"), ORACLES) if {*pair} <= {*_held_out_metrics(arms)}]
    if not pairs:
        return None
    figure, grid = _grid(len(pairs), columns=2, height=4.4)
    for axes, pair in zip(grid, pairs, strict=True):
        for arm, runs in arms.items():
            first, second = (dict(zip(*_band(runs, "held_out", metric)[:2], strict=True)) for metric in pair)
            shared = [update for update in first if update in second]
            x, y = [first[update] for update in shared], [second[update] for update in shared]
            end = {"markevery": [len(x) - 1] if x else [], **styles[arm].marked(8)}
            axes.plot(x, y, label=arm, color=styles[arm].colour, linewidth=1, **end)
            axes.plot(x[:1], y[:1], color=GREY, marker="o", markersize=8, fillstyle="none", linestyle="none")
        axes.set_xlabel(_words(pair[0]))
        axes.set_ylabel(_words(pair[1]))
    figure.suptitle(
        "Held-out cases during training: from the base (hollow) to the end (filled), mean over seeds", fontsize=11
    )
    _legend(figure, len(grid), in_a_cell=20)
    return figure


# --- curves over updates ---------------------------------------------------------------------------------------------


def _curves(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Held-out rewards and metrics over updates: mean over seeds and its 95 % band."""
    metrics = _held_out_metrics(arms)
    if not metrics:
        return None
    return _panels(arms, styles, "held_out", metrics, lambda axes, metric: axes.set_title(_words(metric), fontsize=11))


def _held_out_metrics(arms: Runs) -> list[str]:
    """Metrics of the evaluations during training."""
    rows = [row for runs in arms.values() for run in runs for row in run["held_out"]]
    return list(dict.fromkeys(name for row in rows for name in row if name != "update"))


def _conflict(arms: Runs, styles: Mapping[str, Style]) -> Figure | None:
    """Inside the training groups: conflict in excess of independent rewards, and correlation of the rewards."""
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
    """Updates that all runs have, mean over runs and its 95 % interval; `smooth` is the length of a moving average."""
    series = [{row["update"]: row[metric] for row in run[part] if metric in row} for run in runs]
    updates = sorted(set.intersection(*(set(of_run) for of_run in series)))
    values = np.array([[of_run[update] for update in updates] for of_run in series])
    if smooth > 1 and len(updates) >= smooth:
        kernel = np.ones(smooth) / smooth
        values = np.stack([np.convolve(row, kernel, mode="valid") for row in values])
        updates = updates[smooth - 1 :]
    estimates = [over_seeds(column.tolist()) for column in values.T]
    mean, low, high = (np.array([getattr(e, name) for e in estimates]) for name in ("mean", "low", "high"))
    return updates, mean, low, high


# --- parts of every plot ---------------------------------------------------------------------------------------------


def _grid(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with this many axes in rows. All figures are equally wide, so a page shows their text at one size."""
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
    """Outside the axes, because data may lie anywhere in them: in a free cell of the grid if it fits, else beside."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # Matplotlib lists lines before points; the front belongs after the arms.
    order = sorted(range(len(labels)), key=lambda n: labels[n] == FRONT)
    named = [handles[n] for n in order], [labels[n] for n in order]
    look: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "title": title, "alignment": "left"}
    if len(figure.axes) > panels and len(labels) <= in_a_cell:
        figure.axes[panels].legend(*named, loc="upper left", borderaxespad=0, **look)
    else:
        figure.legend(*named, loc="outside right upper", ncols=-(-len(labels) // IN_A_COLUMN), **look)


def _words(metric: str) -> str:
    return metric.replace("_", " ")
