"""How fast training is on a CPU, against the authors' loop and against the floor: the passes of an update alone.

    make bench                                    # prints a table; figures and picture go to build/bench
    python benchmarks/bench.py --quick --output X # a few seconds, to see that it works; its figures mean nothing

All rows run in one process, in turn, several times over, so that other load on the machine meets them all alike. A row
is a name and some settings: a further one is a line of `ROWS`. What the columns mean: docs/performance.md.
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
from statistics import median
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from bench_figure import draw
from bench_scaling import scaling_lines
from pass_times import IMAGES, Times, best_batches, between, floor, forwards_per_training_pass, time_passes
from release_loop import release_update

from customized_grpo.config import load_config
from customized_grpo.cost.passes import Passes, passes
from customized_grpo.cost.simulated import measure
from customized_grpo.run.environment import environment
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer

COMMON = ("device=cpu", "evaluation.every=0", "updates=1000", "groups.size=12", "sampling.num_steps=25")
PUBLISHED = (  # the settings of the recipe uno-paper, for the built-in model
    *("groups.prompts=1", "objective.minibatches=3", "objective.step_scale=none", "optimizer.warmup=0"),
    *("noise.dynamics=dance", "noise.level=0.4", "noise.steps=all", "window.strategy=scattered", "window.size=14"),
)
QUICK = ("groups.size=3", "sampling.num_steps=4", "groups.prompts=1", "data.train_samples=64")
QUICK_PUBLISHED = ("window.size=2",)
SMALLER = ("groups.rollout_batch=24", "groups.update_batch=24")
BATCHES = (1, 4, 12, 24, 48)  # at which single passes are timed


@dataclass(frozen=True)
class Row:
    """A variant of training.

    update   one update of the trainer
    windows  updates in each round, with windows that are spread evenly over the possible ones
    """

    recipe: str
    settings: Sequence[str] = ()
    update: Callable[[Trainer], dict[str, Any]] = Trainer.step
    windows: int = 1


ROWS = {
    "release": Row("critters-paper", PUBLISHED, release_update),
    "release, batched": Row("critters-paper", PUBLISHED),
    "critters": Row("critters", windows=2),
    "critters, batches of 24": Row("critters", SMALLER, windows=2),
    "and finished in 6 steps": Row("critters", (*SMALLER, "sampling.finish_steps=6"), windows=2),
}
BASELINE = "release"


class Runner:
    """A row's trainer, and what was measured of it."""

    def __init__(self, row: Row, folder: Path, *, quick: bool):
        small = (*QUICK, *(QUICK_PUBLISHED if row.settings == PUBLISHED else ())) if quick else ()
        settings = (*COMMON, *row.settings, *small, f"output={folder}")
        self.row, self.config = row, load_config(row.recipe, settings)
        self.trainer = assemble(self.config)
        self.trainer.ratio_checks = 2  # the check belongs to the first two updates of a run only
        self.seconds: list[float] = []  # of each round, per update
        self.phases: list[dict[str, float]] = []
        self.passes_alone: list[Times] = []  # in each round, before and after the row
        self.updates = self._updates(0)

    def _updates(self, turn: int) -> list[int]:
        """The updates to time in a round: other samples in each, but windows at the same places.

        Windows decide how much of a rollout a group shares, so they have to be as on average over a run.
        """
        plan, count = self.trainer.plan, self.row.windows
        if self.config.window.strategy != "random":
            return list(range(turn * count, (turn + 1) * count))
        places: dict[int, list[int]] = {}
        for update in range(self.config.updates):
            places.setdefault(plan.window(update)[0], []).append(update)
        starts = sorted(places)
        chosen = [starts[int((part + 0.5) / count * len(starts))] for part in range(count)]
        return [places[start][turn] for start in chosen]

    def warm_up(self) -> None:
        """Run the updates of round 0, which does not count, and follow the memory of the first."""
        rewards = [value for reward in self.trainer.rewards.values() for value in vars(reward).values()]
        modules = [self.trainer.policy.module, *(value for value in rewards if isinstance(value, torch.nn.Module))]
        before = [weight for module in modules for weight in module.parameters()]
        self.trainer.update = self.updates[0]
        self.peak = measure(lambda: self.row.update(self.trainer), before).memory

    def time(self, turn: int) -> None:
        updates, rows = self._updates(turn), []
        start = time.perf_counter()
        for update in updates:
            self.trainer.update = update
            rows.append(self.row.update(self.trainer))
        self.seconds.append((time.perf_counter() - start) / len(updates))
        parts = [row["seconds"] for row in rows]
        self.phases.append({name: sum(part[name] for part in parts) / len(parts) for name in parts[0]})

    @property
    def passes(self) -> Passes:
        return passes(self.config, self.updates)

    def results(self, baseline: Sequence[float]) -> dict[str, Any]:
        """Figures of all rounds. Ratios are those within a round.

        baseline  seconds per image of the row to compare with
        """
        groups, size, counted = self.config.groups.prompts, self.config.groups.size, self.passes
        per_image = [seconds / groups / size for seconds in self.seconds]
        best = best_batches(self.passes_alone)
        floors = [floor(counted, times, best) for times in self.passes_alone]
        single = [floor(counted, times, dict.fromkeys(best, 1)) for times in self.passes_alone]
        return {
            "images_per_second": 1 / median(per_image),
            "seconds_per_group": {"min": min(per_image) * size, "median": median(per_image) * size},
            "forward_equivalents_per_image": self._forwards(counted) / counted.images,
            "times_baseline": median(theirs / own for theirs, own in zip(baseline, per_image, strict=True)),
            "over_floor": median(s / sum(f.values()) for s, f in zip(self.seconds, floors, strict=True)),
            "over_batch_1": median(s / sum(f.values()) for s, f in zip(self.seconds, single, strict=True)),
            "peak_mib": self.peak / 2**20,
            "best_batches": best,
            "seconds_per_image_alone": {
                kind: {batch: median(each[kind][batch] for each in self.passes_alone) for batch in sizes}
                for kind, sizes in self.passes_alone[0].items()
            },
            "rounds": {"seconds_per_update": self.seconds, "phases": self.phases, "floors": floors},
            "settings": list(self.row.settings),
            "recipe": self.row.recipe,
        }

    def _forwards(self, counted: Passes) -> float:
        return counted.sampled + counted.extra + counted.trained * forwards_per_training_pass(self.trainer)


def measure_rows(rounds: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    runners = {name: Runner(row, folder / str(number), quick=quick) for number, (name, row) in enumerate(ROWS.items())}
    for runner in runners.values():
        runner.warm_up()
    first = runners[BASELINE]
    batches, images = ((1, 2), 2) if quick else (BATCHES, IMAGES)
    after = time_passes(first.trainer, batches, images)
    for turn in range(1, rounds + 1):
        for runner in runners.values():
            before = after
            runner.time(turn)
            after = time_passes(first.trainer, batches, images)
            runner.passes_alone.append(between(before, after))
    baseline = [seconds / first.passes.images for seconds in first.seconds]
    return {name: runner.results(baseline) for name, runner in runners.items()}


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | images/s | s per group, min | median | forwards per image | times `release` | over its floor "
        "| over its passes at batch 1 | peak, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        group = row["seconds_per_group"]
        lines.append(
            f"| {name} | {row['images_per_second']:.2f} | {group['min']:.2f} | {group['median']:.2f} "
            f"| {row['forward_equivalents_per_image']:.1f} | {row['times_baseline']:.2f} | {row['over_floor']:.2f} "
            f"| {row['over_batch_1']:.2f} | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """The processor's name on Linux, otherwise ""."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("--output", type=Path, default=Path("build/bench"))
    options.add_argument("--quick", action="store_true", help="tiny and once")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    start = time.monotonic()
    rounds = 1 if chosen.quick else chosen.rounds
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_rows(rounds, Path(folder), quick=chosen.quick)
        print(table(rows), flush=True)
        lines = scaling_lines(rounds, Path(folder), quick=chosen.quick)
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    seconds = time.monotonic() - start
    results = {"rows": rows, "lines": lines, "environment": environment() | machine, "seconds": seconds}
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, chosen.output / "bench.png")
    print(f"\n{machine['processor']}, torch {torch.__version__}, {chosen.threads} thread(s), {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
