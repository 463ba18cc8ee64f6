"""Competitive degradation and hacking, worked by hand: evaluation rows in, verdicts and updates out."""

from collections.abc import Sequence
from typing import Any

import pytest

from customized_grpo.compare.degradation import KINDS, Kind, Verdict, degradation_of, judge
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.training.watch import Watch

COMPETITIVE, MIRRORED, IDENTITY_HACKING, PROMPT_HACKING = KINDS
NOTHING: dict[str, Any] = {
    **{"judged": 1, "at_end": 0, "on_the_way": 0, "first_update": None, "last_update": None, "updates": {}},
    **{"warned": 0, "first_warning": None},
}


def rows(**series: Sequence[float | None]) -> list[dict[str, Any]]:
    """Evaluations every 25 updates; None is a figure that could not be scored and is missing from the row."""
    names, columns = [*series], zip(*series.values(), strict=True)
    return [
        {"update": 25 * n, **{name: value for name, value in zip(names, column, strict=True) if value is not None}}
        for n, column in enumerate(columns)
    ]


RISING: Sequence[float | None] = [0.50, 0.60, 0.70, 0.65, 0.60]  # above its start at 25, 50, 75, 100; ends at .65
FALLING: Sequence[float | None] = [0.50, 0.40, 0.45, 0.55, 0.40]  # below it at 25, 50, 100; ends at 1.40 / 3
BELOW: Sequence[float | None] = [0.50, 0.40, 0.55, 0.40, 0.40]  # below it at 25, 75, 100; ends at 1.35 / 3


def test_competitive_degradation_needs_both_the_reward_and_the_oracle_to_fall():
    both = rows(identity_reward=RISING, prompt_reward=FALLING, oracle_prompt=BELOW)
    assert judge(COMPETITIVE, both) == Verdict(at_end=True, updates=(25, 100))
    assert judge(MIRRORED, both) == Verdict(at_end=False, updates=())
    risen = rows(identity_reward=RISING, prompt_reward=FALLING, oracle_prompt=RISING)
    assert judge(COMPETITIVE, risen) == Verdict(at_end=False, updates=())


def test_without_an_oracle_the_rewards_decide_and_hacking_cannot_be_judged():
    evaluations = rows(identity_reward=RISING, prompt_reward=FALLING)
    assert judge(COMPETITIVE, evaluations) == Verdict(at_end=True, updates=(25, 50, 100))
    assert judge(IDENTITY_HACKING, evaluations) is None
    assert judge(PROMPT_HACKING, evaluations) is None


def test_mirrored_degradation_depends_on_the_oracles_identity_figure():
    """The oracle's prompt figure, which rises, does not matter."""
    evaluations = rows(identity_reward=FALLING, prompt_reward=RISING, oracle_identity=BELOW, oracle_prompt=RISING)
    assert judge(MIRRORED, evaluations) == Verdict(at_end=True, updates=(25, 100))
    assert judge(COMPETITIVE, evaluations) == Verdict(at_end=False, updates=())


def test_hacking_compares_a_reward_with_its_own_oracle():
    evaluations = rows(identity_reward=RISING, prompt_reward=FALLING, oracle_identity=FALLING, oracle_prompt=BELOW)
    assert judge(IDENTITY_HACKING, evaluations) == Verdict(at_end=True, updates=(25, 50, 100))
    # Above its start at 75 alone, where the oracle is below.
    assert judge(PROMPT_HACKING, evaluations) == Verdict(at_end=False, updates=(75,))


def test_the_end_is_the_mean_of_the_last_three_evaluations():
    """The last evaluation alone is the other way round: identity .45, prompt .60; the means are .55 and .45."""
    evaluations = rows(identity_reward=[0.5, 0.1, 0.6, 0.6, 0.45], prompt_reward=[0.5, 0.9, 0.35, 0.4, 0.6])
    assert judge(COMPETITIVE, evaluations) == Verdict(at_end=True, updates=(50, 75))


def test_a_short_run_ends_with_what_it_has():
    """One evaluation after the first; the first one itself is never part of the end."""
    assert judge(COMPETITIVE, rows(identity_reward=[0.5, 0.6], prompt_reward=[0.5, 0.4])) == Verdict(True, (25,))
    assert judge(COMPETITIVE, rows(identity_reward=[0.5], prompt_reward=[0.5])) is None
    assert judge(COMPETITIVE, []) is None


def test_equal_figures_have_neither_risen_nor_fallen():
    """(.1 + .1 + .1) / 3 is more than .1 in floating point."""
    flat: Sequence[float | None] = [0.1] * 5
    for series in (
        {"identity_reward": flat, "prompt_reward": BELOW},
        {"identity_reward": RISING, "prompt_reward": flat},
    ):
        assert judge(COMPETITIVE, rows(**series)) == Verdict(at_end=False, updates=())


def test_evaluations_that_could_not_be_scored_are_left_out():
    """Identity is unknown at 50 and prompt NaN at 75: the end is the mean of 25 and 100."""
    evaluations = rows(identity_reward=[0.5, 0.6, None, 0.7, 0.6], prompt_reward=[0.5, 0.4, 0.1, float("nan"), 0.45])
    assert judge(COMPETITIVE, evaluations) == Verdict(at_end=True, updates=(25, 100))
    assert judge(COMPETITIVE, rows(identity_reward=[None, 0.6, 0.7], prompt_reward=[0.5, 0.4, 0.3])) is None


# --- the run's own warnings ------------------------------------------------------------------------------------------


def warnings_of(**series: list[float]) -> list[dict[str, Any]]:
    """The rows of a run's own warnings, with evaluations every 25 updates."""
    measures = {name: parse_reward(name).measures for name in series if not name.endswith("_reward")}
    watch = Watch({"identity": "identity_reward", "prompt": "prompt_reward"}, measures=measures)
    warnings = []
    for row in rows(**series):
        watch.observe_evaluation({**row, "spread": dict.fromkeys(series, 0.3)})
        warnings += watch.observe({"update": row["update"], "saturated_identity": 0.0, "saturated_prompt": 0.0})
    return [warning.as_dict() for warning in warnings]


UP, DOWN = [0.5, 0.55, 0.6, 0.65, 0.7], [0.7, 0.65, 0.6, 0.55, 0.5]


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        ({"identity_reward": UP, "prompt_reward": DOWN}, COMPETITIVE),
        ({"identity_reward": DOWN, "prompt_reward": UP}, MIRRORED),
        ({"identity_reward": UP, "prompt_reward": UP, "oracle_identity": DOWN}, IDENTITY_HACKING),
        ({"identity_reward": UP, "prompt_reward": UP, "oracle_prompt": DOWN}, PROMPT_HACKING),
        ({"identity_reward": UP, "prompt_reward": UP, "dino against=other_view": DOWN}, None),
    ],
)
def test_a_warning_counts_by_the_metrics_that_it_names(series: dict[str, list[float]], kind: Kind | None):
    (warning,) = warnings_of(**series)
    assert warning["update"] == 100
    arm = degradation_of("naive", {0: {"held_out": [], "warnings": [warning]}})
    counted = [name for name, counts in arm.counts.items() if counts.warned]
    assert (counted, arm.other_warnings) == (([kind.name], 0) if kind else ([], 1))


def test_a_warning_of_an_old_run_that_names_no_metrics_counts_among_the_others():
    (warning,) = warnings_of(identity_reward=UP, prompt_reward=DOWN)
    old = {key: warning[key] for key in ("update", "kind", "message")}
    arm = degradation_of("naive", {0: {"held_out": [], "warnings": [old]}})
    assert (arm.counts[COMPETITIVE.name].warned, arm.other_warnings) == (0, 1)


# --- an arm ----------------------------------------------------------------------------------------------------------


def test_an_arm_counts_its_seeds_and_keeps_first_and_last_updates():
    oracles: dict[str, Sequence[float | None]] = {"oracle_identity": RISING, "oracle_prompt": BELOW}
    later: dict[str, Sequence[float | None]] = {
        "identity_reward": [0.5, 0.4, 0.6, 0.4, 0.4],
        "oracle_identity": RISING,
    }
    later |= {"prompt_reward": [0.5, 0.6, 0.4, 0.4, 0.4], "oracle_prompt": [0.5, 0.6, 0.4, 0.4, 0.4]}
    warnings = warnings_of(identity_reward=UP, prompt_reward=DOWN)
    others = [
        {"update": 75, "kind": "saturated groups", "message": "not of these kinds"},
        {"update": 75, "kind": "hacking suspected", "message": "from an old run"},
        *warnings_of(identity_reward=UP, prompt_reward=UP, joint_success=DOWN),
    ]
    runs = {
        3: {"held_out": rows(identity_reward=RISING, prompt_reward=FALLING, **oracles), "warnings": warnings},
        # At 50 alone: .6 above .5, .4 below .5 twice. It ends with .467 below .5.
        4: {"held_out": rows(**later), "warnings": others},
        5: {"held_out": rows(identity_reward=RISING, prompt_reward=RISING), "warnings": []},
    }
    # other_warnings: identity and prompt reward each against joint_success, and one that names no metrics
    assert degradation_of("naive", runs).as_dict() == {
        "arm": "naive",
        "seeds": 3,
        "competitive_degradation": {
            **{"judged": 3, "at_end": 1, "on_the_way": 2, "first_update": 25, "last_update": 100},
            **{"updates": {"3": (25, 100), "4": (50,)}, "warned": 1, "first_warning": 100},
        },
        # Seed 4 at 25: prompt .6 above .5, identity .4 below; the oracle's identity is up, so no.
        "mirrored_degradation": {**NOTHING, "judged": 3},
        "identity_hacking": {**NOTHING, "judged": 2},
        # Seed 3 at 75: prompt .55, its oracle .40.
        "prompt_hacking": {
            **{**NOTHING, "judged": 2, "on_the_way": 1, "first_update": 75, "last_update": 75},
            "updates": {"3": (75,)},
        },
        "other_warnings": 3,
    }
