"""Seconds per update of a comparison's arms: whose settings, which updates, and what the table says."""

from pathlib import Path

import arm_times
import pytest
import yaml

from customized_grpo.training.trainer import Trainer
from program import TINY


def test_arms_take_the_same_updates_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "comparison.yaml"
    arms = {"plain": {"shaping.rule": "linear"}, "both": {"shaping.rule": "sars"}, "unasked": {}}
    primary = {"arm": "both", "against": ["plain"], "metric": "joint_success"}
    file.write_text(
        yaml.safe_dump({"recipe": TINY, "output": "unused", "arms": arms, "seeds": [3], "primary": primary})
    )
    taken, step = [], Trainer.step

    def recorded(trainer: Trainer):
        row = step(trainer)
        taken.append((trainer.config.shaping.rule, trainer.config.seed, row["update"]))
        return row

    monkeypatch.setattr(Trainer, "step", recorded)
    seconds = arm_times.times(file, ["plain", "both"], updates=2, seed=3, folder=tmp_path / "runs")
    assert taken == [(rule, 3, update) for update in (1, 2, 3) for rule in ("linear", "sars")]
    assert {arm: len(own) for arm, own in seconds.items()} == {"plain": 2, "both": 2}
    assert all(value > 0 for own in seconds.values() for value in own)


def test_ratios_are_those_of_the_same_turn():
    lines = arm_times.table({"plain": [1.0, 2.0, 4.0], "both": [1.5, 2.0, 6.0]}).splitlines()
    assert lines[2:] == ["| plain | 2.00 | 1.000 |", "| both | 2.00 | 1.500 |"]
