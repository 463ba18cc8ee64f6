"""`customized-grpo demo`: train the built-in model, then measure base and tuned on cases that nothing has seen."""

from __future__ import annotations

import json
import time
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.config import RunConfig, load_config, parse_metric
from customized_grpo.critters.samples import TEST_CRITTERS, UNSEEN_SITUATIONS, draw_samples
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.errors import UsageError
from customized_grpo.files.durable import write_text
from customized_grpo.files.pictures import draw_card, draw_sheet, save_png
from customized_grpo.measure.curves import draw_curves
from customized_grpo.measure.intervals import Estimate, estimates
from customized_grpo.report import write_report
from customized_grpo.run.cases import keep_cases
from customized_grpo.training.assemble import assemble, load_metrics
from customized_grpo.training.evaluation import HeldOut

METRICS = tuple(parse_metric(name) for name in ("oracle_identity", "oracle_prompt", "joint_success", "copy_paste"))
SHOWN = 12  # cases in the picture: the first ones, not the best ones
KEPT = 48  # of the report, likewise

Estimates = dict[str, Estimate]


def run_demo(output: Path | None, *, seed: int, updates: int | None, cases: int, device: str) -> None:
    """Train, measure, draw; writes run/, cases/, cases.png, curves.png, summary.json and report.html.

    Without `output` a new folder is made under runs/. The test cases are the same for every seed.
    """
    start = time.perf_counter()
    folder = output or next(path for path in _numbered(Path("runs/demo")) if not path.exists())
    if folder.exists():
        raise UsageError(f"{folder} exists; name another folder with --output, or leave it out for runs/demo-N")
    overrides = [f"output={folder / 'run'}", f"seed={seed}", f"device={device}"]
    overrides += [] if updates is None else [f"updates={updates}"]
    config = load_config("critters", overrides)
    trainer = assemble(config)
    print(f"Training the built-in model with SARS + TDW, {config.updates} updates, seed {seed}.", flush=True)
    training = time.perf_counter()
    trainer.train()
    training = time.perf_counter() - training

    samples = draw_samples(cases, TEST_CRITTERS, 0)
    samples += draw_samples(max(cases // 4, 1), TEST_CRITTERS, 1, UNSEEN_SITUATIONS)
    unseen = torch.arange(len(samples)) >= cases
    metrics = load_metrics(config.model_copy(update={"evaluation": _with_metrics(config)}), trainer.rewards)
    held_out = HeldOut(samples, metrics, config.groups.rollout_batch, trainer.processes)
    policy, sigmas = trainer.policy, trainer.sampler.sigmas
    with policy.base_policy():
        base = held_out.evaluate(policy, sigmas, "measuring the base")
    tuned = held_out.evaluate(policy, sigmas, "measuring the tuned model")

    rows = list(zip(samples, base.images, tuned.images, strict=True))[:SHOWN]
    save_png(draw_sheet([_card(*row) for row in rows], columns=3), folder / "cases.png")
    draw_curves(folder / "run", folder / "curves.png")
    for name, scored in (("base", base), ("tuned", tuned)):
        keep_cases(folder / "cases", name, scored.shown(samples[:cases], KEPT))
    figures = {
        name: (estimates(base.scores, select), estimates(tuned.scores, select))
        for name, select in (("", ~unseen), ("_unseen_combinations", unseen))
    }
    summary = {f"base{part}": _plain(before) for part, (before, _) in figures.items()}
    summary |= {f"tuned{part}": _plain(after) for part, (_, after) in figures.items()}
    seconds = {"install_excluded_total": time.perf_counter() - start, "training": training}
    summary |= {"seed": seed, "seconds": seconds, "cases": cases, "cases_unseen_combinations": len(samples) - cases}
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    page = write_report([folder], folder / "report.html")

    print(f"\n{cases} held-out cases: critters that neither base, encoders nor RL have seen\n")
    print(_table(*figures[""]))
    print(f"\n{len(samples) - cases} more with combinations of scene, place and hat that RL has not seen\n")
    print(_table(*figures["_unseen_combinations"]))
    print(f"\n{training:.0f} s of training, {seconds['install_excluded_total']:.0f} s in all")
    print(f"pictures: {folder / 'cases.png'}   curves: {folder / 'curves.png'}   figures: {folder / 'summary.json'}")
    print(f"all of it on one page, to open in a browser: {page}")


def _numbered(path: Path):
    """path, path-2, path-3, ..."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def _with_metrics(config: RunConfig):
    return config.evaluation.model_copy(update={"metrics": METRICS})


def _card(sample: Sample, base: Tensor, tuned: Tensor):
    pictures = [sample.reference_images()[0], *to_pictures(torch.stack([base, tuned]))]
    return draw_card(pictures, sample.prompt, ["reference", "base", "tuned"])


def _plain(figures: Estimates) -> dict[str, dict[str, float]]:
    return {name: figure.as_dict() for name, figure in figures.items()}


def _table(base: Estimates, tuned: Estimates) -> str:
    """Metric, base, tuned and their difference, with 95 % intervals."""
    lines = [f"{'':<17} {'base':<23} {'tuned':<23} change", "-" * 72]
    for name in base:
        change = tuned[name].mean - base[name].mean
        lines.append(f"{name.replace('_', ' '):<17} {base[name]!s:<23} {tuned[name]!s:<23} {change:+.3f}")
    return "\n".join(lines)
