"""The tables of benchmarks/flux_scale.py, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from customized_grpo.config import RunConfig
from customized_grpo.policies.diffusers_policy import DiffusersPolicy

LEGEND = """\
a  the loop of the authors' release: one image at a time, noise at every step
b  the same work in batches, by our trainer
c  window and shared prefix, as the recipes train
d  c with fewer steps around the window (sampling.finish_steps), and --lever
x a      images per second, in those of row a
of rate  needed FLOP/s as a part of the matrix rate; (all): repeated passes of
         checkpointing included
peak     GB of 10^9 bytes; plan: what `plan` says of it, without text encoders
Rewards are tiny encoders: their seconds say nothing about those of a recipe."""
COLUMNS = (
    f"{'':<7}{'seconds of':^27}{'':>7}{'part of the rate':^22}{'GB':^15}".rstrip()
    + f"\n{'T row':<7}{'rollout':>9}{'reward':>9}{'update':>9}{'x a':>7}{'rollout':>8}{'update':>7}{'(all)':>7}"
    + f"{'peak':>8}{'plan':>7}"
)


def heading(family: str, rank: str, config: RunConfig, policy: DiffusersPolicy, rate: float) -> str:
    """What the rows below have in common."""
    adapter = sum(weight.numel() for weight in policy.trainable_parameters().values())
    weights = sum(weight.numel() for weight in policy.module.parameters()) - adapter
    blocks = " + ".join(str(len(getattr(policy.module, name))) for name in policy.layers.blocks)
    model, groups = config.model, config.groups
    size = f"{model.width} x {model.height} pixels"
    lines = (
        "",
        f"{family}: {weights / 1e9:.2f} billion weights in {blocks} blocks; rank {rank}: {adapter / 1e6:.1f} million",
        f"one group of {groups.size} images of {size}, one reference each",
        f"products of bfloat16 matrices: {rate / 1e12:.3g} TFLOP/s",
        COLUMNS,
    )
    return "\n".join(lines)


def row_line(row: Mapping[str, Any]) -> str:
    seconds, of_rate = row["seconds"], row["share"]
    times = "" if row["times_release"] is None else f"{row['times_release']:.2f}"
    return (
        f"{row['steps']:<3}{row['row']:<4}{seconds['rollout']:>9.2f}{seconds['reward']:>9.2f}{seconds['update']:>9.2f}"
        f"{times:>7}{of_rate['rollout']:>8.3f}{of_rate['update']:>7.3f}{row['executed_share']['update']:>7.3f}"
        f"{row['peak'] / 1e9:>8.2f}{row['planned_peak'] / 1e9:>7.2f}"
    )


def lora_lines(overhead: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, each in overhead.items():
        yield (
            f"the adapter in a pass {name}: {each['time']:+.1%} time, {each['operations']:+.1%} FLOP, "
            f"{each['points']:+.1f} points"
        )
