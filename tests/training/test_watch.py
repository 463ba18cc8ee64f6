"""Warnings: known series, each reported once, rarely reported of noise."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.training import watch as watching
from customized_grpo.training.advice import advice as advice_on
from customized_grpo.training.record import saturated
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import EVALUATIONS, UPDATES, RunWarning, TrainingError, Watch
from runs import CALIBRATED, SMALL, rows_of

TRAINED = {"identity": "identity_reward", "prompt": "prompt_reward"}
MEASURES = {
    **{name: parse_reward(name).measures for name in ("dino", "clip_t", "oracle_identity", "oracle_prompt")},
    **{name: parse_reward(name).measures for name in ("joint_success", "copy_paste", "dino against=other_view")},
}
FLAT = [0.5, 0.5, 0.5, 0.5, 0.5]
UP = [0.50, 0.54, 0.61, 0.66, 0.70]
DOWN = [0.70, 0.66, 0.59, 0.56, 0.50]


def row(update: int, identity: float = 0.0, prompt: float = 0.0) -> dict[str, Any]:
    return {"update": update, "saturated_identity": identity, "saturated_prompt": prompt}


def evaluation(update: int, spread: float = 0.3, **metrics: float) -> dict[str, Any]:
    return {"update": update, **metrics, "spread": dict.fromkeys(metrics, spread)}


def warnings_of(spread: float = 0.3, **series: list[float]) -> list[RunWarning]:
    """The warnings of a run with evaluations every tenth update."""
    watch = Watch(TRAINED, measures=MEASURES)
    warnings = []
    for number in range(len(next(iter(series.values())))):
        values = {name: values[number] for name, values in series.items()}
        watch.observe_evaluation(evaluation(10 * number, spread, **values))
        for update in range(10 * number, 10 * number + 10):
            warnings += watch.observe(row(update))
    return warnings


def test_competitive_degradation_is_reported_with_its_figures():
    """Lines by hand: UP has mean .602 and slope .052 an evaluation, DOWN .602 and -.050."""
    (warning,) = warnings_of(identity_reward=UP, prompt_reward=DOWN)
    assert warning.as_dict() == {
        "update": 40,
        "kind": "competitive degradation",
        "message": "over the last 5 evaluations (updates 0 to 40) the identity reward of held-out cases rose from "
        "0.498 to 0.706 while the prompt reward fell from 0.702 to 0.502",
        "rising": "identity_reward",
        "falling": "prompt_reward",
    }


def test_the_other_direction_is_a_warning_of_its_own():
    (warning,) = warnings_of(identity_reward=DOWN, prompt_reward=UP)
    assert "the prompt reward of held-out cases rose" in warning.message
    assert (warning.rising, warning.falling) == ("prompt_reward", "identity_reward")


def test_it_is_reported_once_however_long_it_continues():
    rising, falling = [0.1 + 0.05 * n for n in range(12)], [0.9 - 0.05 * n for n in range(12)]
    assert len(warnings_of(identity_reward=rising, prompt_reward=falling)) == 1


@pytest.mark.parametrize(
    "series",
    [
        {"identity_reward": UP, "prompt_reward": UP},
        {"identity_reward": UP, "prompt_reward": FLAT},
        {"identity_reward": DOWN, "prompt_reward": DOWN},
        {"identity_reward": UP[:4], "prompt_reward": DOWN[:4]},  # the window is not full
        {"identity_reward": UP, "prompt_reward": [0.7, 0.4, 0.8, 0.3, 0.5]},  # no clear trend
        {"identity_reward": UP, "prompt_reward": [0.5, 0.499, 0.498, 0.497, 0.496]},  # clear and tiny
        {"identity_reward": UP, "prompt_reward": [0.7, math.nan, 0.59, 0.56, 0.5]},
    ],
)
def test_other_series_are_not_called_degradation(series: dict[str, list[float]]):
    assert warnings_of(**series) == []  # pyright: ignore[reportArgumentType]


def test_a_change_counts_in_spreads_of_its_own_metric():
    """The same fall of .2 is large for a reward with a spread of .3 and negligible for one with a spread of 3."""
    assert warnings_of(0.3, identity_reward=UP, prompt_reward=DOWN)
    assert not warnings_of(3.0, identity_reward=UP, prompt_reward=DOWN)


def test_a_reward_that_rises_while_an_untrained_metric_of_the_same_quality_falls():
    (warning,) = warnings_of(identity_reward=FLAT, prompt_reward=UP, oracle_prompt=DOWN, oracle_identity=DOWN)
    assert warning.kind == "hacking suspected"
    assert (warning.rising, warning.falling) == ("prompt_reward", "oracle_prompt")
    expected = "the prompt reward of held-out cases rose from 0.498 to 0.706 while oracle_prompt, which is not"
    assert expected in warning.message
    kinds = [warning.kind for warning in warnings_of(identity_reward=UP, prompt_reward=UP, joint_success=DOWN)]
    assert kinds == ["hacking suspected"] * 2
    assert warnings_of(identity_reward=FLAT, prompt_reward=UP, copy_paste=DOWN) == []
    other_view: Any = {"dino against=other_view": DOWN}
    (warning,) = warnings_of(identity_reward=UP, prompt_reward=FLAT, **other_view)
    assert warning.falling == "dino against=other_view"


def test_a_metric_of_both_qualities_that_falls_with_the_other_reward_is_not_hacking():
    """Joint success falls with the prompt: the identity reward may still be right."""
    kinds = [w.kind for w in warnings_of(identity_reward=UP, prompt_reward=DOWN, joint_success=DOWN)]
    assert kinds == ["competitive degradation"]
    found = warnings_of(identity_reward=UP, prompt_reward=DOWN, joint_success=DOWN, oracle_identity=DOWN)
    assert [w.kind for w in found] == ["competitive degradation", "hacking suspected"]
    assert "while oracle_identity, which is not" in found[1].message


def test_noise_rarely_alarms():
    """200 runs of 10 evaluations that only fluctuate: two trends in opposite directions arise by chance alone."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        series = {name: rng.normal(0.5, 0.1, 10).tolist() for name in TRAINED.values()}
        alarms += bool(warnings_of(**series))  # pyright: ignore[reportArgumentType]
    assert alarms / 200 < 0.05


def saturation_warnings(share: float) -> list[RunWarning]:
    watch = Watch(TRAINED, measures=MEASURES)
    return [warning for update in range(1, 30) for warning in watch.observe(row(update, prompt=share))]


def test_saturated_groups_are_reported_once_per_reward():
    (warning,) = saturation_warnings(0.8)
    assert (warning.update, warning.kind) == (UPDATES, "saturated groups")
    assert "80% of the groups had no spread in the prompt reward" in warning.message
    assert (warning.rising, warning.falling) == (None, None)
    assert saturation_warnings(0.7) == []


def test_updates_that_could_not_be_scored_do_not_count():
    """The share is NaN while the run trains, and null once it is read back."""
    watch = Watch(TRAINED, measures=MEASURES)
    gap = {"saturated_prompt": None}
    rows = [row(n, prompt=0.9) | (gap if n % 2 else {}) for n in range(30)]
    rows[3]["saturated_prompt"] = math.nan
    warnings = [warning for values in rows for warning in watch.observe(values)]
    assert [warning.update for warning in warnings] == [18]  # the tenth update that was scored


def test_a_replayed_watch_goes_on_as_if_never_stopped():
    rising, falling = [0.1 + 0.05 * n for n in range(8)], [0.9 - 0.05 * n for n in range(8)]
    evaluations = [evaluation(10 * n, identity_reward=rising[n], prompt_reward=falling[n]) for n in range(8)]
    rows = [row(update, identity=0.8) for update in range(1, 80)]

    def warnings_after(stop: int) -> list[RunWarning]:
        watch = Watch(TRAINED, measures=MEASURES)
        watch.replay(rows[:stop], [e for e in evaluations if e["update"] <= stop])
        warnings = []
        for values in rows[stop:]:
            for e in evaluations:
                if stop < e["update"] == values["update"]:
                    watch.observe_evaluation(e)
            warnings += watch.observe(values)
        return warnings

    uninterrupted = warnings_after(0)
    assert {(w.update, w.kind) for w in uninterrupted} == {(10, "saturated groups"), (40, "competitive degradation")}
    for stop in (5, 10, 25, 39, 40, 60):
        assert warnings_after(stop) == [w for w in uninterrupted if w.update > stop]
    assert EVALUATIONS == 5


@pytest.mark.parametrize(
    ("rewards", "share"),
    [
        ([[0.99, 0.991, 0.989], [0.99, 0.5, 0.1]], 0.5),  # at a ceiling, and not
        ([[0.28, 0.30, 0.26], [0.27, 0.31, 0.25]], 0.0),  # CLIP's small scale is not saturation
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], 1.0),
        ([[0.01, -0.01, 0.0], [3.0, -3.0, 0.0]], 0.5),  # mean zero: compared with the spread of all
        ([[math.nan, 0.5, 0.9], [math.nan, math.nan, math.nan]], 0.0),
        ([[math.nan, math.nan]], math.nan),
    ],
)
def test_the_share_of_saturated_groups(rewards: list[list[float]], share: float):
    assert saturated(torch.tensor(rewards)) == pytest.approx(share, nan_ok=True)


def test_a_run_writes_its_warnings_into_its_rows(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """A prompt reward that gives every image the same score: one warning, and no second one after a resume."""
    monkeypatch.setattr(watching, "UPDATES", 2)

    def constant(images: Tensor, samples: Any) -> Tensor:  # noqa: ARG001
        return torch.full((len(images),), 0.7)

    def run(updates: int, resume: bool) -> list[dict[str, Any]]:
        trainer = make_trainer("save_every=2", f"updates={updates}", resume=resume)
        trainer.rewards["prompt"] = constant
        trainer.train()
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    rows = run(3, resume=False)
    assert [row["update"] for row in rows if "warnings" in row] == [2]
    (warning,) = rows[1]["warnings"]
    assert (warning["kind"], warning["rising"], warning["falling"]) == ("saturated groups", None, None)
    assert "warning, update 2: saturated groups: over the last 2 updates 100%" in capsys.readouterr().err
    assert [row["update"] for row in run(4, resume=True) if "warnings" in row] == [2]


# --- what follows from it --------------------------------------------------------------------------------------------


def falling(make_trainer: Callable[..., Trainer], *overrides: str, updates: int = 8, resume: bool = False) -> Trainer:
    """A trainer whose held-out prompt reward falls while identity rises, from the first evaluation on."""
    small = ("weighting.kind=constant", "evaluation.every=1", "save_every=100", f"updates={updates}")
    trainer = make_trainer(*SMALL, *small, *overrides, resume=resume)
    report = trainer.held_out.report

    def known(*args: Any, **named: Any) -> Any:
        row, shown = report(*args, **named)
        change = 0.1 * trainer.update
        series = {"identity_reward": 0.2 + change, "prompt_reward": 0.9 - change}
        return row | series | {"spread": dict.fromkeys(row["spread"], 0.3)}, shown

    object.__setattr__(trainer.held_out, "report", known)
    return trainer


def test_degradation_names_what_to_set(make_trainer: Callable[..., Trainer]):
    trainer = falling(make_trainer, updates=4)
    trainer.train()
    (warning,) = (w for row in trainer.directory.logs()[0] for w in row.get("warnings", ()))
    advice = "; start again with weighting.prompt=0.6 (now 0.5), or with shaping.rule=joint"
    assert warning["message"].endswith(advice)


@pytest.mark.parametrize(
    ("overrides", "roles", "advice"),
    [
        (
            [],
            ("prompt", "identity"),
            "weighting.high=0.6 weighting.low=0.2 (now 0.7 and 0.3), or with shaping.rule=joint",
        ),
        (["shaping.rule=min"], ("prompt", "identity"), "start again with shaping.rule=joint"),
        (["weighting.kind=constant", "weighting.prompt=.95"], ("identity", "prompt"), "weighting.prompt=1 (now 0.95)"),
        (["shaping.rule=joint"], ("identity", "prompt"), "or with weighting.balance=proportional"),
        (["shaping.rule=joint", "weighting.balance=dual"], ("identity", "prompt"), "(now 0.7 and 0.3)"),
        ([], ("identity", "identity"), "train on one of the two"),
        ([], ("quality", "prompt"), "give the quality reward another weight"),
    ],
)
def test_advice(overrides: list[str], roles: tuple[str, str], advice: str, make_trainer: Callable[..., Trainer]):
    found = advice_on(make_trainer(*overrides, CALIBRATED).plan, *roles)
    assert advice in found


def test_a_run_may_stop_at_degradation(make_trainer: Callable[..., Trainer], tmp_path: Path):
    trainer = falling(make_trainer, "on_degradation=stop")
    with pytest.raises(TrainingError, match="stopped after update 4, as on_degradation=stop says: over the last 5"):
        trainer.train()
    assert (tmp_path / "run/checkpoints/step-00004/interim").exists()
    again = falling(make_trainer, "on_degradation=stop", resume=True)
    with pytest.raises(TrainingError, match="stopped after update 4"):
        again.train()  # as a scheduler does that starts a run again whenever it ends
    assert (again.update, len(rows_of(again.directory.path))) == (4, 4)
    resumed = falling(make_trainer, "on_degradation=say", updates=6, resume=True)
    resumed.train()
    assert resumed.update == 6


def test_weights_that_follow_already_go_on_as_they_are(make_trainer: Callable[..., Trainer]):
    settings = ("weighting.balance=proportional", "shaping.rule=joint", CALIBRATED)
    trainer = falling(make_trainer, "on_degradation=balance", *settings)
    trainer.train()
    assert any(row.get("warnings") for row in rows_of(trainer.directory.path))
    assert trainer.shaper.balance == "proportional"


def test_weights_may_follow_from_the_first_degradation_on(make_trainer: Callable[..., Trainer], tmp_path: Path):
    whole = falling(make_trainer, "on_degradation=balance", f"output={tmp_path / 'whole'}")
    whole.train()
    rows = rows_of(whole.directory.path)
    assert ["level" in row for row in rows] == [False] * 4 + [True] * 4
    assert {step["prompt_weight"] for row in rows[:4] for step in row["steps"]} == {0.5}
    assert rows[7]["level"] != 0.5
    falling(make_trainer, "on_degradation=balance", updates=6).train()
    resumed = falling(make_trainer, "on_degradation=balance", resume=True)
    resumed.train()
    assert rows_of(resumed.directory.path) == rows
