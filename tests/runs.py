"""Runs that take a tenth of a second an update, and what they leave in their folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

# One group of three images in three steps, noise in one of them, a small adapter.
SMALL = (
    *("groups.prompts=1", "sampling.num_steps=3", "window.last=1", "window.size=1"),
    *("adapter.targets=[to_q, to_v]", "adapter.rank=2", "adapter.alpha=2", "data.held_out_samples=2"),
)
# Shaping that remembers earlier updates: pooled spreads of rewards and of the rule, and balanced weights.
CALIBRATED = f"shaping.calibration={Path(__file__).parent / 'calibration.yaml'}"
REMEMBERING = (
    *("shaping.rule=joint", "shaping.normalise=pooled", "shaping.kappa=1", CALIBRATED),
    *("weighting.kind=constant", "weighting.balance=proportional"),
)

# torch.compile runs the system's compiler, and `make test` must pass on machines without one.
NEEDS_COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def rows_of(run: Path, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a log without the times, which differ from run to run."""
    rows = [json.loads(line) for line in (run / log).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
