"""The figures of docs/method.md and docs/diagnostics.md, drawn from the functions that train and from real runs.

python tests/method_figures.py --write     draw docs/images/method/*.svg

Each figure is one file for light and dark pages: lines and letters take the page's colours (`prefers-color-scheme`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from customized_grpo.algorithm import Calibration, TimeAwareWeights, sigma_schedule, step_advantages, step_progress
from customized_grpo.algorithm.rules.sars import synergy_bonus
from rule_planes import CALIBRATIONS, GROUP, MARKERS, members

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "images" / "method"
EXPERIMENT = DOCS / "results" / "experiment" / "arms"

# What is drawn in one of these colours takes its name's colour on the page: light, dark.
COLOURS = {
    "ink": ("#010203", "#24292f", "#d7dbe0"),
    "faint": ("#010204", "#d5d8dc", "#4a5058"),
    "prompt": ("#010205", "#0b6e99", "#5cc4ee"),
    "identity": ("#010206", "#b34d00", "#ffab70"),
    "both": ("#010207", "#2c7a3f", "#7bd88f"),
    "wrong": ("#010208", "#8b3a8b", "#e29be2"),
}
INK, FAINT, PROMPT, IDENTITY, BOTH, WRONG = (drawn for drawn, _, _ in COLOURS.values())
KINDS = {"copied": IDENTITY, "faithful": BOTH, "drifted": PROMPT, "both wrong": WRONG}
STYLE: Any = {
    "svg.hashsalt": "customized-grpo",  # the same names of elements each time
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "lines.linewidth": 1.8,
}


def sars(figure: Figure) -> None:
    """The bonus over both advantages, and what it does to the advantages of a group."""
    plane, group = figure.subplots(1, 2, width_ratios=[1, 1.25])
    axis = torch.linspace(-2, 2, 81)
    for prompt, colour in ((-1.5, WRONG), (-0.5, IDENTITY), (0.5, PROMPT), (1.5, BOTH)):
        bonus = synergy_bonus(torch.full_like(axis, prompt), axis, gamma=0.4)
        plane.plot(axis, bonus, color=colour, label=f"{prompt:+.1f}")
    plane.set(title="the bonus, gamma = .4", xlabel="advantage of identity", ylabel="bonus")
    plane.legend(title="advantage\nof the prompt", loc="upper left", fontsize=8)
    plane.set_ylim(-0.45, 0.75)
    plane.set_yticks([-0.4, -0.2, 0, 0.2, 0.4])
    _bars(group, "linear", "sars", {})
    group.set(title="a group: without and with the bonus", ylabel="advantage")


def joint(figure: Figure) -> None:
    """From a reward to its quality, and what the product does to the advantages of a group."""
    quality, group = figure.subplots(1, 2, width_ratios=[1, 1.25])
    axis = torch.linspace(-0.2, 1.2, 141)
    for role, colour in (("identity", IDENTITY), ("prompt", PROMPT)):
        calibration: Calibration = CALIBRATIONS[role]
        quality.plot(axis, calibration.quality(axis), color=colour, label=role)
        for value in (calibration.bad, calibration.good):
            quality.plot(value, calibration.position(torch.tensor(value)), "o", color=colour, markersize=5)
    quality.set(title="reward to quality", xlabel="reward", ylabel="quality")
    quality.annotate("bad", (0.05, 0.02), (0.18, 0.04), color=INK)
    quality.annotate("good: another real view", (0.78, 1.0), (-0.2, 1.1), color=INK)
    quality.legend(loc="lower right", fontsize=8)
    _bars(group, "linear", "joint", CALIBRATIONS)
    group.set(title="a group: weighted sum, and joint", ylabel="advantage")


def _bars(axes: Any, plain: str, shaped: str, calibrations: Any) -> None:
    """Advantages of the pictures of a group by two rules, side by side, with the pictures' marks."""
    rewards = {"identity": members()[:1], "prompt": members()[1:]}
    kinds = [kind for kind, pairs in GROUP.items() for _ in pairs]
    for rule, shift, strong in ((plain, -0.2, False), (shaped, 0.2, True)):
        found = step_advantages(rule, rewards, torch.tensor([0.5]), calibrations=calibrations)[0, :, 0].numpy()
        colours = [KINDS[kind] for kind in kinds]
        axes.bar(
            np.arange(len(kinds)) + shift, found, 0.36, color=colours if strong else "none", edgecolor=colours, lw=1.2
        )
    axes.axhline(0, color=INK, lw=0.8)
    for kind, colour in KINDS.items():
        axes.plot([], [], MARKERS[kind], color=colour, label=kind)
    axes.set_xticks([])
    axes.grid(visible=False, axis="x")
    axes.legend(
        fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.02), columnspacing=1, handletextpad=0.2
    )


def tdw(figure: Figure) -> None:
    """The weights over progress, with the steps of two schedules."""
    axes = figure.subplots()
    weights, progress = TimeAwareWeights(), np.linspace(0, 1, 401)
    prompt = weights.prompt_weight(torch.tensor(progress))
    for values, colour, name in ((prompt, PROMPT, "prompt"), (1 - prompt, IDENTITY, "identity")):
        axes.plot(progress, values, color=colour)
        axes.annotate(name, (0.015, float(values[0])), (0, 5), textcoords="offset points", color=colour)
    for count, height in ((25, 0.25), (10, 0.21)):
        steps = step_progress(range(count - 1), sigma_schedule(count, 3.0))
        axes.plot(steps, np.full(count - 1, height), "|", color=INK, markersize=7)
        axes.annotate(
            f"steps of T = {count}", (1.01, height), va="center", color=INK, fontsize=8, annotation_clip=False
        )
    axes.set(xlabel="progress: 0 is noise, 1 the picture", ylabel="weight", xlim=(0, 1), ylim=(0.18, 0.78))
    for place, text in ((0.12, "what is shown"), (0.56, "details of the subject"), (0.94, "finish")):
        axes.annotate(text, (place, 0.8), ha="center", color=INK, fontsize=8, annotation_clip=False)


RUNS = {
    "it learns: SARS + TDW": "sars_tdw/seed-0",
    "it is stuck: naive, 1 : 1": "naive/seed-2",
    "it collapses: naive, prompt .4": "naive_prompt.4/seed-0",
}


def conflict(figure: Figure) -> None:
    """Three real runs: rewards of held-out cases, what an oracle finds, and agreement inside groups."""
    rows = figure.subplots(2, len(RUNS), sharex=True, sharey="row")
    for column, (title, run) in enumerate(RUNS.items()):
        result = json.loads((EXPERIMENT / run / "result.json").read_text(encoding="utf-8"))
        above, below = rows[0][column], rows[1][column]
        held_out = result["held_out"]
        at = [row["update"] for row in held_out]
        for name, colour, label in (
            ("identity_reward", IDENTITY, "identity reward"),
            ("prompt_reward", PROMPT, "prompt reward"),
            ("joint_success", BOTH, "joint success (oracle)"),
        ):
            above.plot(at, [row[name] for row in held_out], color=colour, label=label)
        above.set_title(title)
        updates = result["updates"]
        for name, colour, label in (
            ("both_good", BOTH, "both good"),
            ("correlation", INK, "correlation"),
        ):
            below.plot(
                [row["update"] for row in updates], _smooth([row[name] for row in updates]), color=colour, label=label
            )
        below.axhline(0, color=INK, lw=0.8)
        below.set_xlabel("update")
    rows[0][0].set_ylabel("held-out cases")
    rows[1][0].set_ylabel("inside groups")
    rows[0][1].legend(fontsize=7.5, loc="lower right")
    rows[1][2].legend(fontsize=7.5, loc="lower right")


def _smooth(values: list[float | None], width: int = 15) -> np.ndarray:
    """The running mean over the updates that have a value."""
    known = np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.array([np.nanmean(known[max(0, i - width) : i + width + 1]) for i in range(len(known))])


FIGURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "sars": (sars, (7.2, 2.9)),
    "tdw": (tdw, (7.2, 2.6)),
    "joint": (joint, (7.2, 2.9)),
    "conflict": (conflict, (8.2, 4.2)),
}


def drawn(name: str) -> str:
    """The figure as SVG, with the page's colours."""
    draw, size = FIGURES[name]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _with_colours(text.getvalue())


def _with_colours(svg: str) -> str:
    names = {colour: name for name, (colour, _, _) in COLOURS.items()}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var(--{name})")
    light, dark = (";".join(f"--{name}:{both[kind]}" for name, both in COLOURS.items()) for kind in (1, 2))
    style = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, mark, rest = svg.partition("<defs>")
    return "\n".join(line.rstrip() for line in f"{head}{style}{mark}{rest}".splitlines()) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for each in FIGURES:
        picture = drawn(each)
        if sys.argv[1:] == ["--write"]:
            (FOLDER / f"{each}.svg").write_text(picture, encoding="utf-8")
        print(f"{each}: {len(picture):,} characters")
