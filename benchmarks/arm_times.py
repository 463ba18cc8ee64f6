"""Seconds per update of the arms of a comparison, side by side: what an arm's rule costs.

    python benchmarks/arm_times.py docs/results2/weights.yaml constant.6 sars_tdw joint.5

The arms take one update each in turn, in one process and with the same prompts, windows and noise, so that other load
on the machine meets them all alike. The first update of each does not count.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from customized_grpo.compare.comparison import Comparison
from customized_grpo.training.assemble import assemble


def times(file: Path, arms: Sequence[str], updates: int, seed: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every update after the first, by arm."""
    comparison = Comparison.read(file, folder)
    trainers = {}
    for arm in arms:
        config = comparison.config(arm, seed)
        quiet = config.evaluation.model_copy(update={"every": 0})
        trainers[arm] = assemble(config.model_copy(update={"evaluation": quiet, "output": str(folder / arm)}))
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for update in range(updates + 1):
        for arm, trainer in trainers.items():
            trainer.update = update
            row = trainer.step()
            if update:
                seconds[arm].append(sum(row["seconds"].values()))
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and each arm's update over the first arm's in the same turn."""
    first = next(iter(seconds.values()))
    lines = ["| arm | seconds per update, median | times the first arm's |", "| --- | --- | --- |"]
    for arm, own in seconds.items():
        ratio = median(mine / theirs for mine, theirs in zip(own, first, strict=True))
        lines.append(f"| {arm} | {median(own):.2f} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a comparison's file")
    parser.add_argument("arms", nargs="+", help="its arms to time")
    parser.add_argument("--updates", type=int, default=20, help="that count, of each arm")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(table(times(arguments.file, arguments.arms, arguments.updates, arguments.seed, Path(folder))))


if __name__ == "__main__":
    main()
