"""The picture of a benchmark: the rows, and how the time of an update grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

COLOUR, FLOOR, FIT = "#3b6ea5", "#c9d6e4", "#c0392b"


def draw(results: dict[str, Any], file: Path) -> None:
    lines = results["lines"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    _rows(axes.flat[0], results["rows"])
    for axis, line in zip(axes.flat[1:], lines.values(), strict=False):
        _line(axis, line)
    for axis in axes.flat[1 + len(lines) :]:
        axis.axis("off")
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _rows(axis: Any, rows: dict[str, Any]) -> None:
    """Seconds per image, and the part of them that the passes alone take."""
    names = list(rows)
    seconds = [1 / row["images_per_second"] for row in rows.values()]
    floors = [own / row["over_floor"] for own, row in zip(seconds, rows.values(), strict=True)]
    axis.barh(names, seconds, color=COLOUR, label="measured")
    axis.barh(names, floors, color=FLOOR, height=0.5, label="floor")
    axis.invert_yaxis()
    axis.set_xlabel("seconds per image")
    axis.legend(frameon=False)


def _line(axis: Any, line: dict[str, Any]) -> None:
    axis.plot(line["x"], line["seconds"], "o", color=COLOUR)
    if "slope" in line:
        axis.plot(line["x"], [line["slope"] * x + line["intercept"] for x in line["x"]], color=FIT, lw=1)
        axis.set_title(f"R² = {line['r2']:.3f}", fontsize=9)
    axis.set_xlabel(line["label"])
    axis.set_ylabel("seconds per update")
    axis.set_xticks(line["x"])
    axis.set_ylim(0, 1.1 * max(line["seconds"]))
