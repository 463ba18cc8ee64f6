"""The curves of one run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from customized_grpo.files.durable import replacing
from customized_grpo.run.logs import read_log

SMOOTH = 10  # updates
INK, IDENTITY, PROMPT, JOINT = "#333333", "#c2571a", "#1a6fc2", "#2a8a4a"


def draw_curves(run: Path, target: Path) -> None:
    """Rewards, held-out success and conflict of a run over its updates, as a PNG file.

    Values of the training groups are noisy (one update is 8 prompts): they are drawn faint, and moving means strong.
    """
    metrics, held_out = read_log(run / "metrics.jsonl"), read_log(run / "evaluations.jsonl")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    rewards, success, conflict = figure.subplots(1, 3)
    _lines(rewards, metrics, {"reward_identity": ("identity", IDENTITY), "reward_prompt": ("prompt", PROMPT)})
    rewards.set_title("rewards of the training groups")
    truth = {
        "oracle_identity": ("identity right", IDENTITY),
        "oracle_prompt": ("prompt right", PROMPT),
        "joint_success": ("joint success", JOINT),
    }
    _lines(success, held_out, {name: style for name, style in truth.items() if name in held_out[0]}, marker="o")
    success.set_title("oracle on held-out cases")
    _lines(conflict, metrics, {"conflict": ("conflict", INK), "both_good": ("both good", JOINT)})
    conflict.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    conflict.set_title("conflict inside groups (dotted: chance)")
    for axes in (rewards, success, conflict):
        axes.set_xlabel("update")
        axes.set_ylim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    with replacing(target) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _lines(
    axes: Axes, rows: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple[str, str]], marker: str | None = None
) -> None:
    updates = np.array([row["update"] for row in rows])
    for name, (label, colour) in styles.items():
        values = np.array([np.nan if row[name] is None else row[name] for row in rows])
        if marker is None and len(rows) >= SMOOTH:
            axes.plot(updates, values, color=colour, linewidth=0.8, alpha=0.3)
            means = np.convolve(values, np.full(SMOOTH, 1 / SMOOTH), mode="valid")
            axes.plot(updates[SMOOTH - 1 :], means, label=label, color=colour, linewidth=2)
        else:
            axes.plot(updates, values, label=label, color=colour, marker=marker, markersize=4)
