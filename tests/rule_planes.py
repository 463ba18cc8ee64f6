"""The planes of docs/method.md: what each shaping rule gives a picture, depending on its two rewards.

python tests/rule_planes.py --write     draw docs/images/rules/*.png and print the table of the page
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from customized_grpo.algorithm import SHAPING_RULES, Calibration, step_advantages

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "rules"
# A group as the built-in base makes them: identity and prompt reward of each picture.
GROUP = {
    "copied": [(1.0, 0.0), (0.98, 0.05), (0.99, -0.05)],
    "faithful": [(0.78, 0.97), (0.74, 0.93)],
    "drifted": [(0.15, 0.97), (0.05, 0.94)],
    "both wrong": [(0.1, 0.05)],
}
MARKERS = {"copied": "s", "faithful": "*", "drifted": "^", "both wrong": "x"}
CALIBRATIONS = {"identity": Calibration(0.02, 0.78, capped=True), "prompt": Calibration(-0.02, 0.99)}
# The planes: a name, the rule, and the prompt's weight. TDW's early and late weight show what it does to a rule.
PLANES = {
    **{rule: (rule, 0.5) for rule in SHAPING_RULES},
    "linear-early": ("linear", 0.7),
    "linear-late": ("linear", 0.3),
}
LOW, HIGH, CELLS = -0.2, 1.1, 53


def members() -> Tensor:
    """The rewards of the group's pictures, [2, G]: identity, prompt."""
    return torch.tensor([pair for pairs in GROUP.values() for pair in pairs]).T


def advantages(plane: str, rewards: Tensor) -> Tensor:
    """Advantages [P, G] of pictures with these rewards [2, P, G]."""
    rule, weight = PLANES[plane]
    by_role = {"identity": rewards[0], "prompt": rewards[1]}
    groups = ({name: values[i : i + 1] for name, values in by_role.items()} for i in range(rewards.shape[1]))
    found = [  # one group at a time: gdpo whitens over all that it is given
        step_advantages(rule, group, torch.tensor([weight]), calibrations=CALIBRATIONS)[..., 0] for group in groups
    ]
    return torch.cat(found)


def plane(name: str, cells: int = CELLS) -> Tensor:
    """[cells, cells]: the advantage of one more picture in the group, by prompt (rows) and identity (columns)."""
    axis = torch.linspace(LOW, HIGH, cells)
    prompt, identity = torch.meshgrid(axis, axis, indexing="ij")
    further = torch.stack([identity.flatten(), prompt.flatten()])[..., None]
    groups = torch.cat([members()[:, None].expand(-1, cells**2, -1), further], dim=-1)
    return advantages(name, groups)[:, -1].view(cells, cells)


def gaps(name: str) -> tuple[float, float]:
    """By how much faithful pictures of the group are above copied and above drifted ones, in spreads of the advantage.

    The optimiser cancels the size of advantages, so rules are compared in their own spread.
    """
    found = advantages(name, members()[:, None])[0]
    values = iter((found / found.std()).tolist())
    means = {kind: float(np.mean([next(values) for _ in pairs])) for kind, pairs in GROUP.items()}
    return means["faithful"] - means["copied"], means["faithful"] - means["drifted"]


def draw(name: str, file: Path) -> None:
    figure = Figure(figsize=(2.6, 2.45), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(LOW, HIGH, CELLS)
    image = axes.pcolormesh(edges, edges, plane(name).numpy(), cmap="RdBu", vmin=-2, vmax=2, rasterized=True)
    axes.contour(edges, edges, plane(name).numpy(), levels=[0], colors="0.2", linewidths=0.8)
    for kind, pairs in GROUP.items():
        x, y = zip(*pairs, strict=True)
        axes.scatter(x, y, marker=MARKERS[kind], s=26, color="black", linewidths=0.8)
    axes.set(xlabel="identity reward", ylabel="prompt reward", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    figure.colorbar(image, ticks=[-2, 0, 2], shrink=0.8)
    figure.savefig(file, dpi=100)


def row(name: str) -> str:
    """What the page's table says of a plane."""
    copied, drifted = gaps(name)
    return f"{copied:+.2f} | {drifted:+.2f}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for each in PLANES:
            draw(each, FOLDER / f"{each}.png")
    for each in PLANES:
        print(f"| {each} | {row(each)} |")
