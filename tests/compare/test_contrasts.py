"""Questions that a comparison file fixes beforehand, tested in families of their own."""

from math import isnan
from pathlib import Path
from typing import Any

import pytest
from comparison_files import result, write

from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.families import contrasts_of, equivalence, signed_rank
from customized_grpo.compare.tables import tabulate
from customized_grpo.config import ConfigError

ARMS: dict[str, Any] = {name: {"weighting.prompt": w} for name, w in (("low", 0.3), ("mid", 0.5), ("high", 0.7))}
ARMS = {**{name: {**lines, "weighting.kind": "constant"} for name, lines in ARMS.items()}, "best": None}
SEEDS = [0, 1, 2]


def comparison(folder: Path, families: dict[str, Any], **changes: Any) -> Comparison:
    primary = {"arm": "best", "against": ["mid"], "metric": "joint_success"}
    given = {"arms": ARMS, "primary": primary, "seeds": SEEDS, "compare_on": ["joint_success"], **changes}
    return Comparison.read(write(folder, families=families, **given))


def results(**by_arm: list[float]) -> dict[str, dict[int, dict[str, Any]]]:
    return {arm: {seed: result(joint) for seed, joint in enumerate(values)} for arm, values in by_arm.items()}


def test_p_values_by_hand():
    """Mean .02, standard deviation .01: t = .02 / (.01 / sqrt 3) = 3.464 with two degrees of freedom.

    For t^2 = 12 and two degrees of freedom p = 1 - sqrt(12 / 14) = .0742. One-sided, (.05 - .02) sqrt 3 / .01 = 5.196,
    t^2 = 27: p = (1 - sqrt(27 / 29)) / 2 = .01755. All three signs are equal: Wilcoxon's p is 2 / 2^3.
    """
    values = [0.01, 0.02, 0.03]
    assert equivalence(values, 0.05) == pytest.approx(0.01755, abs=1e-5)
    assert equivalence([-x for x in values], 0.05) == pytest.approx(0.01755, abs=1e-5)
    assert equivalence(values, 0.02) == pytest.approx(0.5)  # the mean lies on the bound
    assert signed_rank(values) == 0.25


def test_p_values_of_differences_without_spread():
    assert isnan(signed_rank([0.0, 0.0]))
    assert isnan(equivalence([0.01], 0.05))
    assert [equivalence([x, x], 0.05) for x in (0.01, 0.05, -0.06)] == [0, 1, 1]


def test_a_family_is_corrected_by_itself(tmp_path: Path):
    """The first family has two contrasts with p = .0742, so Holm doubles them; the second family has one."""
    families = {
        "weights": {"contrasts": [{"arm": "mid", "against": "low"}, {"arm": "high", "against": "mid"}]},
        "rule": {"equivalent_within": 0.05, "contrasts": [{"arm": "best", "against": "low"}]},
    }
    found = results(low=[0.5, 0.5, 0.5], mid=[0.51, 0.52, 0.53], high=[0.52, 0.54, 0.56], best=[0.51, 0.52, 0.53])
    tested = contrasts_of(comparison(tmp_path, families), found)
    assert [(one.family, one.name) for one in tested] == [
        ("weights", "mid - low"),
        ("weights", "high - mid"),
        ("rule", "best - low"),
    ]
    assert [one.difference.p_value for one in tested] == pytest.approx([0.0742] * 3, abs=1e-4)
    assert [one.corrected for one in tested] == pytest.approx([0.1484, 0.1484, 0.0742], abs=1e-4)
    assert [one.equivalence for one in tested] == [None, None, pytest.approx(0.01755, abs=1e-5)]


def test_of_several_arms_the_worst_counts_seed_by_seed(tmp_path: Path):
    families = {"starts": {"contrasts": [{"arm": ["low", "mid", "high"], "against": "best"}]}}
    found = results(low=[0.9, 0.8, 0.7], mid=[0.8, 0.9, 0.9], high=[0.9, 0.9, 0.9, 0.1], best=[0.5, 0.6, 0.3])
    (tested,) = contrasts_of(comparison(tmp_path, families), found)
    assert tested.name == "worst of low, mid, high - best"
    assert tested.difference.estimate.mean == pytest.approx((0.3 + 0.2 + 0.4) / 3)
    assert tested.difference.pairs == 3


def test_the_margin_beyond_the_front(tmp_path: Path):
    """The front runs from (.9, .5) to (.5, .9) in the oracle's plane; (.8, .8) is .1 beyond its middle (.7, .7)."""
    families = {"front": {"contrasts": [{"arm": "best", "against": "front"}]}}
    found = results(low=[0.5] * 3, high=[0.5] * 3, best=[0.5] * 3)
    points = {"low": (0.9, 0.5), "high": (0.5, 0.9), "best": (0.8, 0.8)}
    for arm, (identity, prompt) in points.items():
        for seed, run in found[arm].items():
            run["test"] |= {"oracle_identity": identity + 0.01 * seed * (arm == "best"), "oracle_prompt": prompt}
    (tested,) = contrasts_of(comparison(tmp_path, families, front=["low", "high"]), found)
    assert tested.difference.estimate.mean == pytest.approx((0.1 + 0.105 + 0.11) / 3)
    assert tested.metric == "margin in (oracle_identity, oracle_prompt)"


def test_the_report_has_a_table_of_families(tmp_path: Path):
    families = {"weights": {"equivalent_within": 0.05, "contrasts": [{"arm": "mid", "against": "low"}]}}
    found = results(low=[0.5, 0.5, 0.5], mid=[0.51, 0.52, 0.53])
    content, table = tabulate(comparison(tmp_path, families), found)
    assert (
        "| weights | mid - low | joint_success | +0.020 [-0.005, +0.045] | 0.074 | 0.074 | 0.250 | +-0.05: 0.018 | 3 |"
        in table
    )
    assert content["families"][0]["p_holm"] == pytest.approx(0.0742, abs=1e-4)
    without = tabulate(comparison(tmp_path, {}), found)
    assert "families" not in without[0]
    assert "Wilcoxon" not in without[1]


def test_contrasts_without_a_common_seed_wait(tmp_path: Path):
    families = {"weights": {"contrasts": [{"arm": "mid", "against": "low"}, {"arm": "high", "against": "low"}]}}
    (tested,) = contrasts_of(comparison(tmp_path, families), results(low=[0.5, 0.5], high=[0.6, 0.7]))
    assert tested.name == "high - low"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ({"contrasts": []}, "families.f.contrasts: tuple should have at least 1 item"),
        ({"contrasts": [{"arm": "mid", "against": "none"}]}, "families.f: no arm is named 'none'; arms: low, mid"),
        ({"contrasts": [{"arm": "mid", "against": ["mid"]}]}, "families.f: mid - mid compares an arm with itself"),
        ({"contrasts": [{"arm": "mid", "against": "front"}]}, "families.f: against the front goes one arm"),
        ({"metric": "x", "contrasts": [{"arm": "mid", "against": "low"}]}, "families.f.metric: x is not tested"),
        ({"equivalent_within": 0, "contrasts": [{"arm": "mid", "against": "low"}]}, "equivalent_within: input should"),
    ],
)
def test_a_family_that_asks_nothing_is_refused(family: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        comparison(tmp_path, {"f": family})
    assert message in str(error.value)
