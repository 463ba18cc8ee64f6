"""How the time of an update grows: with the group, the steps, the picture, the rewards and the processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from customized_grpo.config import load_config
from customized_grpo.training.assemble import assemble

RECIPE = "critters-paper"
COMMON = (  # one window for all updates, so that they do equal work
    *("device=cpu", "evaluation.every=0", "groups.prompts=1", "sampling.num_steps=10", "groups.size=8"),
    *("window.strategy=fixed", "window.start=2", "window.size=2", "data.train_samples=200"),
)


@dataclass(frozen=True)
class Line:
    """What grows.

    of  settings at one of the places
    at  places: what time is plotted against
    """

    label: str
    at: Sequence[int]
    of: Callable[[int], Sequence[str]]


def _side(pixels: int) -> Sequence[str]:
    side = round(pixels**0.5)
    return f"model.height={side}", f"model.width={side}"


def _rewards(count: int) -> Sequence[str]:
    more = range(2, count)
    return [f"rewards.prompt_{n}.{field}" for n in more for field in ("name=clip_t", "role=prompt")]


LINES = {
    "group": Line("images in a group", (4, 8, 12, 16), lambda x: [f"groups.size={x}"]),
    "steps": Line("denoising steps", (5, 10, 15, 20, 25), lambda x: [f"sampling.num_steps={x}"]),
    "pixels": Line("pixels of a picture", (32**2, 48**2, 64**2), _side),
    "rewards": Line("rewards", (2, 3, 4, 5), _rewards),
}
QUICK = ("group", "steps")  # the cheap ones


def scaling_lines(rounds: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Seconds per update at each place, the least of all rounds, and a straight line through them."""
    lines = {}
    for name, line in LINES.items():
        if quick and name not in QUICK:
            continue
        places = line.at[:2] if quick else line.at
        trainers = {}
        for place in places:
            settings = (*COMMON, *line.of(place), f"output={folder / f'{name}-{place}'}")
            trainers[place] = assemble(load_config(RECIPE, settings))
        seconds: dict[int, list[float]] = {place: [] for place in places}
        for trainer in trainers.values():
            trainer.ratio_checks = 2  # only the first updates of a run are checked
            trainer.step()  # does not count
        for _ in range(rounds):
            for place, trainer in trainers.items():
                start = time.perf_counter()
                trainer.step()
                seconds[place].append(time.perf_counter() - start)
        least = [min(seconds[place]) for place in places]
        lines[name] = {"label": line.label, "x": list(places), "seconds": least, **straight(places, least)}
    if not quick:
        counts = (1, 2)
        lines["processes"] = {
            "label": "processes",
            "x": list(counts),
            "seconds": [in_processes(count, rounds) for count in counts],
        }
    return lines


def straight(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares: y = slope x + intercept, and R^2, the share of the variance that the line explains."""
    xs, ys = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    slope = ((xs - xs.mean()) * (ys - ys.mean())).sum() / (xs - xs.mean()).square().sum()
    intercept = ys.mean() - slope * xs.mean()
    rest = (ys - slope * xs - intercept).square().sum() / (ys - ys.mean()).square().sum()
    return {"slope": float(slope), "intercept": float(intercept), "r2": float(1 - rest)}


def in_processes(count: int, updates: int) -> float:
    """Seconds of the fastest update of two groups in so many processes of one thread, connected with gloo."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        settings = (*COMMON, "groups.prompts=2", f"updates={updates + 2}", f"output={output}")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [sys.executable, *torchrun, "-m", "customized_grpo", "train", RECIPE, *settings]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
        rows = [json.loads(row) for row in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return min(sum(row["seconds"].values()) for row in rows[2:])  # the first two check the ratio
