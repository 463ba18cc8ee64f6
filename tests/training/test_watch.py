"""Warnings: known series, each said once, rarely said of noise."""

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
from customized_grpo.training.record import saturated
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import EVALUATIONS, UPDATES, Watch

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


def watched(spread: float = 0.3, **series: list[float]) -> list[tuple[int, str, str]]:
    """What is said of evaluations every tenth update."""
    watch = Watch(TRAINED, measures=MEASURES)
    said = []
    for number in range(len(next(iter(series.values())))):
        values = {name: values[number] for name, values in series.items()}
        watch.observe_evaluation(evaluation(10 * number, spread, **values))
        for update in range(10 * number, 10 * number + 10):
            said += [(w.update, w.kind, w.message) for w in watch.observe(row(update))]
    return said


def test_competitive_degradation_is_said_with_its_figures():
    """Lines by hand: UP has mean .602 and slope .052 an evaluation, DOWN .602 and -.050."""
    ((update, kind, message),) = watched(identity_reward=UP, prompt_reward=DOWN)
    assert (update, kind) == (40, "competitive degradation")
    assert message == (
        "over the last 5 evaluations (updates 0 to 40) the identity reward of held-out cases rose from 0.498 to 0.706 "
        "while the prompt reward fell from 0.702 to 0.502"
    )


def test_the_other_direction_is_a_warning_of_its_own():
    ((_, _, message),) = watched(identity_reward=DOWN, prompt_reward=UP)
    assert "the prompt reward of held-out cases rose" in message


def test_it_is_said_once_however_long_it_goes_on():
    rising, falling = [0.1 + 0.05 * n for n in range(12)], [0.9 - 0.05 * n for n in range(12)]
    assert len(watched(identity_reward=rising, prompt_reward=falling)) == 1


@pytest.mark.parametrize(
    "series",
    [
        {"identity_reward": UP, "prompt_reward": UP},
        {"identity_reward": UP, "prompt_reward": FLAT},
        {"identity_reward": DOWN, "prompt_reward": DOWN},
        {"identity_reward": UP[:4], "prompt_reward": DOWN[:4]},  # no full window
        {"identity_reward": UP, "prompt_reward": [0.7, 0.4, 0.8, 0.3, 0.5]},  # no clear trend
        {"identity_reward": UP, "prompt_reward": [0.5, 0.499, 0.498, 0.497, 0.496]},  # clear and tiny
        {"identity_reward": UP, "prompt_reward": [0.7, math.nan, 0.59, 0.56, 0.5]},
    ],
)
def test_what_is_no_degradation_is_not_called_one(series: dict[str, list[float]]):
    assert watched(**series) == []  # pyright: ignore[reportArgumentType]


def test_a_change_counts_in_spreads_of_its_own_metric():
    """The same fall of .2 is large for a reward that spreads by .3 and nothing for one that spreads by 3."""
    assert watched(0.3, identity_reward=UP, prompt_reward=DOWN)
    assert not watched(3.0, identity_reward=UP, prompt_reward=DOWN)


def test_a_reward_that_rises_while_an_untrained_metric_of_the_same_falls():
    said = watched(identity_reward=FLAT, prompt_reward=UP, oracle_prompt=DOWN, oracle_identity=DOWN)
    ((_, kind, message),) = said
    assert kind == "hacking suspected"
    assert "the prompt reward of held-out cases rose from 0.498 to 0.706 while oracle_prompt, which is not" in message
    kinds = [kind for _, kind, _ in watched(identity_reward=UP, prompt_reward=UP, joint_success=DOWN)]
    assert kinds == ["hacking suspected"] * 2
    assert watched(identity_reward=FLAT, prompt_reward=UP, copy_paste=DOWN) == []
    assert len(watched(identity_reward=UP, prompt_reward=FLAT, **{"dino against=other_view": DOWN})) == 1  # pyright: ignore[reportArgumentType]


def test_a_metric_of_both_that_falls_with_the_other_reward_is_no_hacking():
    """Joint success falls with the prompt: the identity reward may be as true as ever."""
    kinds = [kind for _, kind, _ in watched(identity_reward=UP, prompt_reward=DOWN, joint_success=DOWN)]
    assert kinds == ["competitive degradation"]
    said = watched(identity_reward=UP, prompt_reward=DOWN, joint_success=DOWN, oracle_identity=DOWN)
    assert [kind for _, kind, _ in said] == ["competitive degradation", "hacking suspected"]
    assert "while oracle_identity, which is not" in said[1][2]


def test_noise_rarely_alarms():
    """200 runs of 10 evaluations that only fluctuate: by chance, two trends in opposite directions."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        series = {name: rng.normal(0.5, 0.1, 10).tolist() for name in TRAINED.values()}
        alarms += bool(watched(**series))  # pyright: ignore[reportArgumentType]
    assert alarms / 200 < 0.05


def test_saturated_groups_are_said_once_per_reward():
    watch = Watch(TRAINED, measures=MEASURES)
    said = [w for update in range(1, 30) for w in watch.observe(row(update, prompt=0.8))]
    (warning,) = said
    assert (warning.update, warning.kind) == (UPDATES, "saturated groups")
    assert "80% of the groups had no spread in the prompt reward" in warning.message
    assert not [
        w for update in range(1, 30) for w in Watch(TRAINED, measures=MEASURES).observe(row(update, prompt=0.9))
    ]
    steady = Watch(TRAINED, measures=MEASURES)
    assert not [w for update in range(1, 30) for w in steady.observe(row(update, prompt=0.7))]


def test_updates_without_any_score_say_nothing():
    """NaN while the run goes on, null once it is read back."""
    watch = Watch(TRAINED, measures=MEASURES)
    rows = [
        row(n, prompt=0.9) | ({"saturated_prompt": gap} if gap != 1 else {}) for n, gap in enumerate([1, None] * 15)
    ]
    rows[3]["saturated_prompt"] = math.nan
    said = [w for each in rows for w in watch.observe(each)]
    assert [w.update for w in said] == [18]  # the tenth update that was scored


def test_a_watch_that_is_replayed_goes_on_as_if_never_stopped():
    rising, falling = [0.1 + 0.05 * n for n in range(8)], [0.9 - 0.05 * n for n in range(8)]
    evaluations = [evaluation(10 * n, identity_reward=rising[n], prompt_reward=falling[n]) for n in range(8)]
    rows = [row(update, identity=0.8) for update in range(1, 80)]

    def said(stop: int) -> list[Any]:
        whole = Watch(TRAINED, measures=MEASURES)
        first = [e for e in evaluations if e["update"] <= stop]
        whole.replay([r for r in rows if r["update"] <= stop], first)
        heard = []
        for each in rows[stop:]:
            for found in evaluations:
                if stop < found["update"] == each["update"]:
                    whole.observe_evaluation(found)
            heard += whole.observe(each)
        return heard

    everything = said(0)
    assert {(w.update, w.kind) for w in everything} == {(10, "saturated groups"), (40, "competitive degradation")}
    for stop in (5, 10, 25, 39, 40, 60):
        assert said(stop) == [w for w in everything if w.update > stop]
    assert EVALUATIONS == 5


@pytest.mark.parametrize(
    ("rewards", "share"),
    [
        ([[0.99, 0.991, 0.989], [0.99, 0.5, 0.1]], 0.5),  # at a ceiling, and not
        ([[0.28, 0.30, 0.26], [0.27, 0.31, 0.25]], 0.0),  # CLIP's small scale is no saturation
        ([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], 1.0),
        ([[0.01, -0.01, 0.0], [3.0, -3.0, 0.0]], 0.5),  # mean zero: compared with the spread of all
        ([[math.nan, 0.5, 0.9], [math.nan, math.nan, math.nan]], 0.0),
        ([[math.nan, math.nan]], math.nan),
    ],
)
def test_the_share_of_saturated_groups(rewards: list[list[float]], share: float):
    assert saturated(torch.tensor(rewards)) == pytest.approx(share, nan_ok=True)


def test_a_run_writes_its_warnings_into_its_rows(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A prompt reward that gives every image the same; twelve updates, one warning, also after a resume."""
    settings = ("updates=12", "save_every=5")

    def constant(images: Tensor, samples: Any) -> Tensor:  # noqa: ARG001
        return torch.full((len(images),), 0.7)

    def run(updates: int, resume: bool) -> list[dict[str, Any]]:
        trainer = make_trainer(*settings, f"updates={updates}", resume=resume)
        trainer.rewards["prompt"] = constant
        trainer.train()
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    rows = run(11, resume=False)
    assert [row["update"] for row in rows if "warnings" in row] == [10]
    assert rows[9]["warnings"][0]["kind"] == "saturated groups"
    assert "warning, update 10: saturated groups: over the last 10 updates 100%" in capsys.readouterr().err
    assert [row["update"] for row in run(12, resume=True) if "warnings" in row] == [10]
