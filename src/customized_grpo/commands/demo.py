"""`customized-grpo demo`: train the built-in model, then compare base and tuned on cases that neither has seen."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.calibration.intervals import Estimate, estimates
from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters.samples import TEST_CRITTERS, UNSEEN_SITUATIONS, draw_samples
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.errors import UsageError
from customized_grpo.files.durable import write_text
from customized_grpo.files.pictures import draw_card, draw_sheet, save_png
from customized_grpo.measure.curves import draw_curves
from customized_grpo.report import write_report
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.run.cases import keep_cases
from customized_grpo.training.assemble import assemble, load_metrics
from customized_grpo.training.evaluation import HeldOut, Scored
from customized_grpo.training.trainer import Trainer
from customized_grpo.wording import counted

METRICS = tuple(parse_metric(name) for name in ("oracle_identity", "oracle_prompt", "joint_success", "copy_paste"))
SHOWN = 12  # cases in cases.png: the first ones, not the best ones
KEPT = 48  # cases in the report: also the first ones
SUMMARY = "summary.json"
FINISH_STEPS = 4  # in place of up to eight: training goes the same way in less time (docs/performance.md)

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Measured:
    """Base and tuned model on the same test cases; the last ones have combinations that training never showed."""

    samples: Sequence[Sample]
    base: Scored
    tuned: Scored
    seen: int  # number of cases with combinations of scene, place and hat that training may show

    def estimates(self, *, unseen: bool) -> tuple[Estimates, Estimates]:
        """Of base and tuned, over one of the two kinds of cases."""
        select = (torch.arange(len(self.samples)) >= self.seen) == unseen
        return estimates(self.base.scores, select), estimates(self.tuned.scores, select)


def new_folder(output: Path | None) -> Path:
    """`output`, or a new folder under runs/. Raises UsageError if it exists."""
    folder = output or next(path for path in _numbered(Path("runs/demo")) if not path.exists())
    if folder.exists():
        raise UsageError(f"{folder} exists; name another folder with --output, or leave it out for runs/demo-N")
    return folder


def run_demo(folder: Path, *, recipe: str, seed: int, updates: int, cases: int, device: str) -> None:
    """Train, measure, draw; writes run/, cases/, cases.png, curves.png, summary.json and report.html.

    The test cases are the same for every seed.
    """
    start = time.perf_counter()
    settings = {"output": folder / "run", "seed": seed, "device": device, "updates": updates}
    config = load_config(recipe, [*settings.items(), ("sampling.finish_steps", FINISH_STEPS)])
    trainer = assemble(config)
    print(
        f"Training the built-in model by the recipe {recipe}, {counted(updates, 'update')}, seed {seed}.", flush=True
    )
    training = time.perf_counter()
    trainer.train()
    training = time.perf_counter() - training

    measured = _measure(config, trainer, cases)
    _draw(measured, folder)
    seconds = {"install_excluded_total": time.perf_counter() - start, "training": training}
    write_text(folder / SUMMARY, json.dumps(_summary(measured, seed, seconds), indent=2) + "\n")
    page = write_report([folder], folder / "report.html")

    print(f"\n{cases} held-out cases: critters that neither base, encoders nor RL have seen\n")
    print(_table(*measured.estimates(unseen=False)))
    further = len(measured.samples) - cases
    print(f"\n{further} more with combinations of scene, place and hat that RL has not seen\n")
    print(_table(*measured.estimates(unseen=True)))
    print(f"\n{training:.0f} s of training, {seconds['install_excluded_total']:.0f} s in all")
    print(f"pictures: {folder / 'cases.png'}   curves: {folder / 'curves.png'}   figures: {folder / SUMMARY}")
    print(f"everything on one page, to open in a browser: {page}")


def _numbered(path: Path) -> Iterator[Path]:
    """path, path-2, path-3, ..."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def _measure(config: RunConfig, trainer: Trainer, cases: int) -> Measured:
    """`cases` test critters, and a quarter as many more with unseen combinations."""
    samples = draw_samples(cases, TEST_CRITTERS, 0)
    samples += draw_samples(max(cases // 4, 1), TEST_CRITTERS, 1, UNSEEN_SITUATIONS)
    evaluation = config.evaluation.model_copy(update={"metrics": METRICS})
    metrics = load_metrics(config.model_copy(update={"evaluation": evaluation}), trainer.rewards)
    held_out = HeldOut(samples, metrics, config.groups.rollout_batch, trainer.processes, config.evaluation_size)
    policy, sigmas = trainer.policy, trainer.sampler.sigmas
    with policy.base_policy():
        base = held_out.evaluate(policy, sigmas, "measuring the base")
    tuned = held_out.evaluate(policy, sigmas, "measuring the tuned model")
    return Measured(samples, base, tuned, cases)


def _draw(measured: Measured, folder: Path) -> None:
    rows = list(zip(measured.samples, measured.base.images, measured.tuned.images, strict=True))[:SHOWN]
    save_png(draw_sheet([_card(*row) for row in rows], columns=3), folder / "cases.png")
    draw_curves(folder / "run", folder / "curves.png")
    for name, scored in (("base", measured.base), ("tuned", measured.tuned)):
        keep_cases(folder / "cases", name, scored.shown(measured.samples[: measured.seen], KEPT))


def _card(sample: Sample, base: Tensor, tuned: Tensor) -> Image.Image:
    pictures = [sample.reference_images()[0], *to_pictures(torch.stack([base, tuned]))]
    return draw_card(pictures, sample.prompt, ["reference", "base", "tuned"])


def _summary(measured: Measured, seed: int, seconds: dict[str, float]) -> dict[str, object]:
    parts = {"": measured.estimates(unseen=False), "_unseen_combinations": measured.estimates(unseen=True)}
    return {
        **{f"base{part}": _as_dict(base) for part, (base, _) in parts.items()},
        **{f"tuned{part}": _as_dict(tuned) for part, (_, tuned) in parts.items()},
        "seed": seed,
        "seconds": seconds,
        "cases": measured.seen,
        "cases_unseen_combinations": len(measured.samples) - measured.seen,
    }


def _as_dict(by_metric: Estimates) -> dict[str, dict[str, float]]:
    return {name: estimate.as_dict() for name, estimate in by_metric.items()}


def _table(base: Estimates, tuned: Estimates) -> str:
    """Metric, base, tuned and their difference, with 95 % intervals."""
    lines = [f"{'':<17} {'base':<23} {'tuned':<23} change", "-" * 72]
    for name in base:
        change = tuned[name].mean - base[name].mean
        lines.append(f"{name.replace('_', ' '):<17} {base[name]!s:<23} {tuned[name]!s:<23} {change:+.3f}")
    return "\n".join(lines)
