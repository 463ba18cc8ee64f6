"""An estimate as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from customized_grpo.cost.cards import CARDS, MEMORIES, fits
from customized_grpo.cost.estimate import Estimate
from customized_grpo.wording import counted

SHORT = 0.01  # seconds of an update and hours of a run: cards that take less are not listed


def described(estimate: Estimate, utilisation: float) -> Iterator[str]:
    """The lines on work, memory and cards."""
    yield from _header(estimate)
    yield from _work(estimate, utilisation)
    yield from _memory(estimate)
    yield ""
    verdicts = [f"{memory} GB {'yes' if fits(estimate, memory) else 'no'}" for memory in MEMORIES]
    yield f"Fits a card of: {', '.join(verdicts)}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _header(estimate: Estimate) -> Iterator[str]:
    config, costs = estimate.config, estimate.measured
    model, (height, width) = config.model, config.evaluation_size
    kind = f"{model.dtype}, blocks in {model.quantise}" if model.quantise else model.dtype
    yield f"{model.path}: {costs.parameters['transformer']:,} weights in the transformer ({kind})"
    yield f"adapter of rank {config.adapter.rank}: {costs.adapter:,} weights in float32"
    evaluated = "" if (height, width) == (model.height, model.width) else f"; evaluated at {width} x {height}"
    yield f"pictures of {model.width} x {model.height} pixels{evaluated}"


def _work(estimate: Estimate, utilisation: float) -> Iterator[str]:
    groups, processes = estimate.config.groups, estimate.processes
    each = f", {estimate.passes.images:g} in each of {processes} processes" if processes > 1 else ""
    large = estimate.flops >= 1e14
    (of_one, one), (of_all, all_) = (("T", 1e12), ("P", 1e15)) if large else (("G", 1e9), ("T", 1e12))
    yield ""
    yield f"One update: {counted(groups.prompts, 'group')} of {counted(groups.size, 'image')}{each}"
    yield f"  {'':<38}{'number':>10}{of_one + 'FLOP each':>13}{of_all + 'FLOP':>9}"
    for part in estimate.work:
        flops = part.flops / part.count / one
        yield f"  {part.what:<38}{part.count:>10,.1f}{flops:>13,.4g}{part.flops / all_:>9,.3g}"
    yield f"  {'in all, without rewards':<61}{estimate.flops / all_:>9,.3g}"
    seconds = {card.name: estimate.flops / card.rate / utilisation for card in CARDS}
    if max(seconds.values()) >= SHORT:
        yield f"  seconds at {utilisation:.0%} of a card's dense bfloat16 rate:"
        yield "    " + _by_card(seconds)
    updates = estimate.config.updates
    hours = {name: value * updates / 3600 for name, value in seconds.items()}
    if max(hours.values()) >= SHORT:
        yield f"  hours for all {updates} updates:"
        yield "    " + _by_card(hours)


def _by_card(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.{0 if value >= 10 else 2}f}" for name, value in values.items())


def _memory(estimate: Estimate) -> Iterator[str]:
    name, unit = ("GB (10^9 bytes)", 1e9) if estimate.peak >= 1e9 else ("MB (10^6 bytes)", 1e6)
    resident, groups = sum(estimate.resident.values()), estimate.config.groups
    yield ""
    yield f"Memory in {name}"
    for part, size in estimate.resident.items():
        yield _row(part, size / unit)
    yield _row("always", resident / unit)
    for phase, parts in estimate.phases.items():
        yield _row(f"{phase}:", (resident + sum(parts.values())) / unit)
        for part, size in parts.items():
            yield _row(f"  + {part}", size / unit)
    batches = (
        f"{counted(groups.rollout_batch, 'image')} in rollout and evaluation, {groups.update_batch} in the update"
    )
    yield f"  activations of {batches}"
    yield "  not counted: what rewards need while they score, and the VAE while it encodes a"
    yield "  reference; CUDA itself, for which 7 % stay free"
    if estimate.unknown:
        yield f"  not counted, because their size is not known: {', '.join(estimate.unknown)}"


def _row(part: str, size: float) -> str:
    return f"  {part:<58}{size:>8.2f}"
