"""The plot of a probe: what each step decides, which schedule follows from it, how strongly each step pulls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.files.durable import replacing
from customized_grpo.measure.curves import IDENTITY, INK, JOINT, PROMPT
from customized_grpo.measure.probe_findings import Findings

REWARDS = {"identity_reward": ("identity reward", IDENTITY), "prompt_reward": ("prompt reward", PROMPT)}
ORACLES = {
    "oracle_identity": ("identity, by the oracle", IDENTITY),
    "oracle_prompt": ("prompt, by the oracle", PROMPT),
}


def draw_probe(findings: Findings, title: str, target: Path) -> None:
    """Three panels over the steps, as a PNG file."""
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    spread, weight, pull = figure.subplots(1, 3)
    _draw_spreads(spread, findings)
    _draw_weights(weight, findings)
    _draw_pull(pull, findings)
    for axes in (spread, weight, pull):
        _label_steps(axes, findings.sigmas)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"Noise at one denoising step only: {title} (bands and bars: 95 %)", fontsize=11, color=INK)
    with replacing(target) as aside:
        figure.savefig(aside, dpi=120, format="png")


def _draw_spreads(axes: Axes, findings: Findings) -> None:
    for name, (label, colour) in REWARDS.items():
        _line(axes, _relative(findings.spreads[name]), label, colour, "-")
        _band(axes, _relative(findings.spreads[name]), colour)
    for name, (label, colour) in ORACLES.items():
        if name in findings.spreads:  # critters only; without bands, which would nearly cover the rewards'
            _line(axes, _relative(findings.spreads[name]), label, colour, ":")
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("spread within a prompt / its mean over the steps")
    axes.set_title("What does a step decide?")


def _draw_weights(axes: Axes, findings: Findings) -> None:
    steps = range(len(findings.sigmas))
    axes.step(steps, findings.present, where="mid", color=INK, linestyle="--", label="weight in this configuration")
    fitted = findings.fitted()
    if findings.fit is not None and fitted is not None:
        axes.step(steps, fitted, where="mid", color=PROMPT, linewidth=2, label="fitted weight")
        _points(axes, findings.fit.shares.estimates(), "measured prompt share", PROMPT)
        if findings.oracle_shares is not None:
            by_oracle = findings.oracle_shares.values.tolist()
            axes.plot(steps, by_oracle, "D", color=PROMPT, fillstyle="none", markersize=5, label="share by the oracle")
        axes.axhline(findings.fit.constant, color=INK, linewidth=0.8, linestyle=":", label="best constant weight")
    axes.set_ylim(0, 1)
    axes.set_ylabel("weight of the prompt; the identity has the rest")
    axes.set_title("Which reward should it learn from?")


def _draw_pull(axes: Axes, findings: Findings) -> None:
    factors = [Estimate(value, value, value) for value in findings.gradient_factors]
    _line(axes, _relative(factors), "on the velocity: |d mean / d v| / std", INK, "--")
    _line(axes, _relative(findings.gradient_norms), "on the adapter: |d log p / d weights|", JOINT, "-")
    _band(axes, _relative(findings.gradient_norms), JOINT)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("gradient / its mean over the steps")
    axes.set_title("How strongly does it pull on the update?")


def _relative(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Divided by the mean over the steps; stays at zero if a metric never varies."""
    mean = sum(e.mean for e in estimates) / len(estimates) or 1.0
    return [Estimate(e.mean / mean, e.low / mean, e.high / mean) for e in estimates]


def _line(axes: Axes, estimates: Sequence[Estimate], label: str, colour: str, style: str) -> None:
    """Means, joined by a line."""
    axes.plot([e.mean for e in estimates], style, color=colour, label=label, marker="o", markersize=4)


def _band(axes: Axes, estimates: Sequence[Estimate], colour: str) -> None:
    """The intervals of a line."""
    low, high = [e.low for e in estimates], [e.high for e in estimates]
    axes.fill_between(range(len(estimates)), low, high, color=colour, alpha=0.15, linewidth=0)


def _points(axes: Axes, estimates: Sequence[Estimate], label: str, colour: str) -> None:
    """Means with intervals as bars; a share can lie outside its interval, whose bar then starts at the point."""
    means = [e.mean for e in estimates]
    bars = [[max(e.mean - e.low, 0.0) for e in estimates], [max(e.high - e.mean, 0.0) for e in estimates]]
    axes.errorbar(range(len(means)), means, bars, fmt="o", markersize=5, color=colour, ecolor=colour, label=label)


def _label_steps(axes: Axes, sigmas: Sequence[float]) -> None:
    """At most ten ticks: the step and, below it, the noise level from which it starts."""
    every = -(-len(sigmas) // 10)
    shown = range(0, len(sigmas), every)
    axes.set_xticks(list(shown), [f"{step}\n{sigmas[step]:.2f}" for step in shown])
    axes.set_xlabel("denoising step / noise level (1: pure noise)")
