"""Time to the same result: how long three ways of training take until the built-in model is as good.

    OMP_NUM_THREADS=1 python benchmarks/same_result.py     # hours on a busy core; go on with the same command
    OMP_NUM_THREADS=1 python benchmarks/same_result.py --quick --output X  # a minute; its figures mean nothing

Every arm starts from the same base and has the settings of the recipe `critters`: rule, rewards, groups, steps, noise
and learning rate. An arm is a line of `ARMS`. The time is that of the processor in this process, in training alone:
building the model, calibrating the rewards and evaluating do not count. The arms of a seed take turns, the one that
has used least time first, so that other load on the machine meets them alike. A run ends when two evaluations in a row
have reached the level, or when its time is spent. docs/performance.md shows a table and a picture of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import torch
from bench import processor
from pass_times import forwards_per_training_pass
from release_loop import release_update

from customized_grpo.compare.time_to import censored_median, first_at
from customized_grpo.config import load_config
from customized_grpo.cost.passes import passes
from customized_grpo.run.environment import environment
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer

METRIC = "joint_success"
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # times to all of them are shown; a run ends at the last
COMMON = ("device=cpu", "evaluation.every=0", f"evaluation.metrics=[{METRIC}]", "updates=100000")
QUICK = ("groups.size=2", "groups.prompts=1", "sampling.num_steps=4", "data.train_samples=64")
QUICK_RELEASE = ("window.size=2",)
EVERYWHERE = ("noise.steps=all", "window.strategy=scattered", "window.size=5")  # 5 of 9, as 14 of 24 in the release


@dataclass(frozen=True)
class Arm:
    """A way of training.

    every   updates between evaluations
    update  one update of the trainer
    """

    settings: Sequence[str]
    every: int
    update: Callable[[Trainer], object] = Trainer.step


ARMS = {
    "release": Arm(EVERYWHERE, 4, release_update),
    "critters": Arm((), 10),
    "all levers": Arm(("groups.rollout_batch=24", "groups.update_batch=24", "sampling.finish_steps=4"), 10),
}
COLOURS = dict(zip(ARMS, ("#c0392b", "#3b6ea5", "#2e8b57"), strict=True))


class Run:
    """One arm with one seed, and the file that its results go to."""

    def __init__(self, name: str, seed: int, file: Path, folder: str, cases: int, *, quick: bool):
        arm = ARMS[name]
        small = (*QUICK, *(QUICK_RELEASE if arm.settings == EVERYWHERE else ())) if quick else ()
        held_out = f"data.held_out_samples={cases}"
        output = f"output={folder}/{file.stem}"
        settings = (*COMMON, *arm.settings, *small, held_out, f"seed={seed}", output)
        self.name, self.seed, self.arm, self.file = name, seed, arm, file
        self.config = load_config("critters", settings)
        self.trainer = assemble(self.config)
        self.seconds, self.rows = 0.0, []
        self.training_pass = forwards_per_training_pass(self.trainer)
        self.ended: str | None = None
        self._evaluate()

    def advance(self, level: float, limit: float) -> None:
        """Train until the next evaluation, and write what is known then."""
        start = time.process_time()
        for _ in range(self.arm.every):
            self.arm.update(self.trainer)
        self.seconds += time.process_time() - start
        self._evaluate()
        if all(row[METRIC] >= level for row in self.rows[-2:]):
            self.ended = "reached"
        elif self.seconds >= limit:
            self.ended = "limit"
        self._write()

    def _evaluate(self) -> None:
        trainer = self.trainer
        figures, _ = trainer.held_out.report(trainer.policy, trainer.evaluation_sigmas, grid=0)
        counted = passes(self.config, range(trainer.update)) if trainer.update else None
        forwards = 0.0
        if counted is not None:
            forwards = trainer.update * (counted.sampled + counted.extra + counted.trained * self.training_pass)
        scores = {name: figures[name] for name in (METRIC, "identity_reward", "prompt_reward")}
        self.rows.append({"update": trainer.update, "seconds": self.seconds, "forwards": forwards, **scores})

    def _write(self) -> None:
        content = {
            "arm": self.name,
            "seed": self.seed,
            "settings": list(self.arm.settings),
            "images_per_update": self.config.groups.prompts * self.config.groups.size,
            "ended": self.ended,
            "rows": self.rows,
        }
        self.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def file_of(name: str, seed: int, output: Path) -> Path:
    return output / f"{name.replace(' ', '-')}-{seed}.json"


def read_runs(output: Path) -> list[dict[str, Any]]:
    """Results so far, also of runs that have not ended, arm by arm."""
    files = [file for name in ARMS for file in sorted(output.glob(f"{name.replace(' ', '-')}-[0-9]*.json"))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def run_seed(seed: int, output: Path, cases: int, limit: float, *, quick: bool) -> None:
    """Train the arms of a seed that have not ended yet, from their beginning."""
    files = {name: file_of(name, seed, output) for name in ARMS}
    todo = [name for name, file in files.items() if not (file.exists() and json.loads(file.read_text())["ended"])]
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(name, seed, files[name], folder, cases, quick=quick) for name in todo]
        while open_runs := [run for run in runs if run.ended is None]:
            run = min(open_runs, key=lambda each: each.seconds)
            run.advance(LEVELS[-1], limit)
            last = run.rows[-1]
            print(f"{run.name} {seed}: update {last['update']}, {run.seconds:.0f} s, {last[METRIC]:.3f}", flush=True)


def reached(run: dict[str, Any], level: float, figure: str) -> float | None:
    """A figure of the first evaluation that reaches the level; None if none does."""
    update = first_at(run["rows"], METRIC, level)
    return next((row[figure] for row in run["rows"] if row["update"] == update), None)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds to each level, the median over seeds, and all seeds at the last level."""
    heads = [*(f"to {level:g}" for level in LEVELS), f"to {LEVELS[-1]:g}, by seed", "forwards to it", "s per update"]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for name in ARMS:
        own = [run for run in runs if run["arm"] == name]
        if not own:
            continue
        medians = [_shown(censored_median([reached(run, level, "seconds") for run in own])) for level in LEVELS]
        by_seed = [_by_seed(run) for run in own]
        forwards = censored_median([reached(run, LEVELS[-1], "forwards") for run in own])
        per_update = sum(run["rows"][-1]["seconds"] for run in own) / sum(run["rows"][-1]["update"] for run in own)
        thousands = "-" if forwards is None else f"{forwards / 1000:.0f} thousand"
        lines.append(f"| {' | '.join([name, *medians, ', '.join(by_seed), thousands, f'{per_update:.2f}'])} |")
    return "\n".join(lines)


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f}"


def _by_seed(run: dict[str, Any]) -> str:
    """Seconds to the last level, or how long the run went on without reaching it."""
    seconds = reached(run, LEVELS[-1], "seconds")
    return f"not in {run['rows'][-1]['seconds']:.0f}" if seconds is None else f"{seconds:.0f}"


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Joint success against seconds, a line per run, a colour per arm."""
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, colour in COLOURS.items():
        for number, run in enumerate(run for run in runs if run["arm"] == name):
            seconds, values = ([row[key] for row in run["rows"]] for key in ("seconds", METRIC))
            axis.plot(seconds, values, color=colour, lw=1.4, alpha=0.8, label=name if number == 0 else None)
            axis.plot(seconds[-1], values[-1], "o", color=colour, ms=5)
    axis.axhline(LEVELS[-1], color="#888888", lw=0.8, ls="--")
    axis.set(xlabel="processor seconds of training, one thread", ylabel="joint success, held out", ylim=(0, 1))
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only draw what is there")
    options.add_argument("--seconds", type=float, default=800, help="of the processor, after which a run ends")
    options.add_argument("--cases", type=int, default=128, help="held-out ones in each evaluation")
    options.add_argument("--output", type=Path, default=Path("build/same_result"))
    options.add_argument("--quick", action="store_true", help="tiny and once")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds[:1] if chosen.quick else chosen.seeds:
        run_seed(
            seed,
            chosen.output,
            4 if chosen.quick else chosen.cases,
            0 if chosen.quick else chosen.seconds,
            quick=chosen.quick,
        )
    runs = read_runs(chosen.output)
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    results = {"levels": LEVELS, "runs": runs, "environment": environment() | machine}
    (chosen.output / "same_result.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(runs, chosen.output / "same_result.png")
    print(table(runs))


if __name__ == "__main__":
    main()
