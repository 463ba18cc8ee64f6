"""Times the public step functions of Flow-GRPO, and ours, on the same work with the built-in model.

    git clone https://github.com/yifan123/flow_grpo
    OMP_NUM_THREADS=1 python benchmarks/beside_flow_grpo.py --flow-grpo flow_grpo

It first compares a step: mean, std and log-probability of the same latents, by its function and by ours. Then it
times updates in one process, in the order A B C C B A, so that other load meets all alike: A its functions, B our
trainer with the same work (noise at all steps, all but the last trained), C our trainer with a window of two steps, as
our recipes have it. docs/performance.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from bench import processor
from flow_grpo_loop import FlowGRPO, flow_grpo_update, replay, sample

from customized_grpo.algorithm import log_prob, step_distribution
from customized_grpo.config import load_config
from customized_grpo.errors import UsageError
from customized_grpo.run.environment import environment
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer

COMMON = ("device=cpu", "evaluation.every=0", "updates=1000", "noise.dynamics=flow", "objective.step_scale=none")
EVERYWHERE = ("noise.steps=all", "window.strategy=all", "window.size=null")
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
DIFFERENCES = """What differs:
- Its std has no factor sqrt(-dt), which its log-probability has; ours has it.
- It adds noise at the last step, too, and does not train it; ours takes no noise there.
- Its log-probabilities are means over dimensions with all constants, as ours. With CPS noise it leaves out constants
  and the division by the variance; ours has both."""


@dataclass
class Way:
    """One way of doing an update, and its seconds."""

    name: str
    trainer: Trainer
    update: Callable[[], object]
    seconds: list[float] = field(default_factory=list)


def compare_steps(trainer: Trainer, theirs: FlowGRPO) -> dict[str, float]:
    """The largest differences between its figures and ours, over all steps of one batch that its loop sampled."""
    level, sigmas = trainer.config.noise.level, trainer.sampler.sigmas
    of = trainer.samples[0]
    with torch.no_grad():
        rolled = sample(trainer, theirs, of, theirs.batch, seed=0)
        condition = trainer.policy.encode([of]).repeat(theirs.batch)
        differences = {"sigma": 0.0, "mean": 0.0, "std": 0.0, "log-probability": 0.0}
        scheduler = trainer.policy.pipe.scheduler
        for step in range(rolled.steps):
            sigma, sigma_next = sigmas[step].item(), sigmas[step + 1].item()
            velocity = trainer.policy.velocity(rolled.latents[step], sigma, condition)
            mean, std = step_distribution("flow", rolled.latents[step], velocity, sigma, sigma_next, level, sigmas[1])
            _, their_mean, their_std = replay(trainer, theirs, rolled, step)
            found = {
                "sigma": scheduler.sigmas[step] - sigma,
                "mean": their_mean - mean,
                "std": their_std.flatten() * (sigma - sigma_next) ** 0.5 - std,
                "log-probability": rolled.log_probs[step] - log_prob(rolled.latents[step + 1], mean, std),
            }
            differences = {name: max(worst, found[name].abs().max().item()) for name, worst in differences.items()}
    return differences


def measure(ways: list[Way], rounds: int, clock: Callable[[], float]) -> None:
    """After an update that does not count, `rounds` there and back again."""
    for way in ways:
        way.update()
    for _ in range(rounds):
        for way in (*ways, *reversed(ways)):
            start = clock()
            way.update()
            way.seconds.append(clock() - start)


def table(ways: list[Way], images: int) -> str:
    lines = ["| | seconds per update, min | median | images/s | times as fast |", "| --- " * 5 + "|"]
    for way in ways:
        ratio = median(first / own for first, own in zip(ways[0].seconds, way.seconds, strict=True))
        middle = median(way.seconds)
        lines.append(f"| {way.name} | {min(way.seconds):.2f} | {middle:.2f} | {images / middle:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def _trainer(settings: tuple[str, ...], output: Path) -> Trainer:
    trainer = assemble(load_config("critters-paper", (*COMMON, *settings, f"output={output}")))
    trainer.ratio_checks = 2  # the check belongs to the first two updates of a run only
    return trainer


def run(chosen: argparse.Namespace, folder: Path) -> None:
    theirs = FlowGRPO.read(chosen.flow_grpo, chosen.batch or chosen.group)
    batch = theirs.batch
    size = (f"groups.prompts={chosen.prompts}", f"groups.size={chosen.group}", f"sampling.num_steps={chosen.steps}")
    common = (*size, f"noise.level={chosen.noise}")
    same = (*common, *EVERYWHERE, f"groups.rollout_batch={batch}", f"groups.update_batch={batch}")
    first, second = (_trainer(same, folder / name) for name in ("theirs", "same"))
    recipe = _trainer(common, folder / "recipe")  # with batches of its own, too
    differences = compare_steps(first, theirs)
    print("largest difference of a step, its figures and ours:")
    print("   ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    print(f"\n{DIFFERENCES}\n")
    ways = [
        Way("Flow-GRPO's functions", first, partial(flow_grpo_update, first, theirs)),
        Way("ours, the same work", second, second.step),
        Way("ours, a window of two steps", recipe, recipe.step),
    ]
    measure(ways, chosen.rounds, CLOCKS[chosen.clock])
    print(table(ways, chosen.prompts * chosen.group))
    settings = {name: str(value) for name, value in vars(chosen).items() if name != "flow_grpo"}
    results = {
        "settings": settings,
        "differences": differences,
        "seconds": {way.name: way.seconds for way in ways},
        "environment": environment() | {"processor": processor()},
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    file = chosen.output / "beside_flow_grpo.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    clock = "processor time" if chosen.clock == "cpu" else "wall-clock time"
    print(f"\n{clock}, {chosen.threads} thread(s), {2 * chosen.rounds} updates each; all figures: {file}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--flow-grpo", type=Path, required=True, help="its folder, a clone of yifan123/flow_grpo")
    options.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="of the processor, or on the wall")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--prompts", type=int, default=1, help="groups per update")
    options.add_argument("--group", type=int, default=12, help="images of each")
    options.add_argument("--batch", type=int, help="images per pass; the whole group if left out")
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--noise", type=float, default=0.7, help="its default")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("--output", type=Path, default=Path("build/beside_flow_grpo"))
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(chosen, Path(folder))
        except UsageError as error:
            options.error(str(error))


if __name__ == "__main__":
    main()
