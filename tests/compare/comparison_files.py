"""Comparison files of the tiny recipe, and results of finished runs with chosen figures."""

from pathlib import Path
from typing import Any

import yaml

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
FILE: dict[str, Any] = {
    "output": "unused",
    "recipe": TINY,
    "overrides": {"updates": 3, "save_every": 1, "evaluation.every": 1, "data.held_out_samples": 2},
    "seeds": [0],
    "test": {"cases": 4, "checkpoints": 2},
    "primary": {"arm": "sars_tdw", "against": ["naive"], "metric": "joint_success"},
    "compare_on": ["dino", "clip_t"],
    "arms": {"naive": {"shaping.rule": "linear", "weighting.kind": "constant"}, "sars_tdw": None},
}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump({**FILE, "output": str(folder / "out"), **changes}, sort_keys=False))
    return file


def result(joint: float, dino: float = 0.5) -> dict[str, Any]:
    """A finished arm with these figures."""
    rows = [{"update": n, "conflict_excess": 0.1, "correlation": -0.2} for n in (1, 2)]
    held_out = [{"update": n, "identity_reward": dino, "prompt_reward": joint * n} for n in (0, 1, 2)]
    test = {"joint_success": joint, "dino": dino, "clip_t": None}
    return {"test": test, "updates": rows, "held_out": held_out, "warnings": []}
