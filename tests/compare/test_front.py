"""How far an arm lies beyond the line through arms that differ in one weight."""

from pathlib import Path

import pytest
from comparison_files import FILE, result, write

from customized_grpo.compare.comparison import Comparison, Results
from customized_grpo.compare.front import beyond_front, beyond_fronts
from customized_grpo.compare.tables import tabulate

FRONT = [(0.2, 1.0), (0.6, 0.6), (1.0, 0.5)]


@pytest.mark.parametrize(
    ("point", "margin"),
    [
        ((0.6, 0.6), 0.0),  # a corner
        ((0.4, 0.8), 0.0),  # between two corners
        ((0.5, 0.9), 0.1),  # (.4, .8) is behind by .1 in both
        ((0.4, 0.6), -0.1),  # (.5, .7) is better by .1 in both
        ((0.1, 1.0), 0.0),  # no better than the first corner, at less identity
        ((0.1, 1.1), 0.1),  # above all of the line
        ((1.2, 0.0), 0.2),  # right of all of the line
        ((0.8, 0.45), -0.08),  # on the flat part: x - .8 = .12 - ..., the crossing lies at (.88, .53)
    ],
)
def test_the_margin_is_what_both_figures_could_lose(point: tuple[float, float], margin: float):
    assert beyond_front(point, FRONT) == pytest.approx(margin)


def test_the_margin_is_least_over_all_of_the_line():
    """Against a fine sampling of the line, for points all around it."""
    steps = [n / 1000 for n in range(1001)]
    line = [
        (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))
        for a, b in ((FRONT[0], FRONT[1]), (FRONT[1], FRONT[2]))
        for t in steps
    ]
    for x in range(-2, 13):
        for y in range(-2, 13):
            sampled = min(max(x / 10 - u, y / 10 - v) for u, v in line)
            assert beyond_front((x / 10, y / 10), FRONT) == pytest.approx(sampled, abs=1e-3)


def test_one_point_makes_no_line():
    with pytest.raises(ValueError, match=r"^a front needs at least two points, this one has 1$"):
        beyond_front((0.5, 0.5), FRONT[:1])


@pytest.fixture
def results() -> Results:
    def judged(identity: float, prompt: float):
        found = result(0.5)
        found["test"] |= {"oracle_identity": identity, "oracle_prompt": prompt}
        return found

    return {
        "base": {0: judged(0.1, 0.1)},
        "low": {0: judged(1.0, 0.0), 1: judged(1.0, 0.2), 2: judged(1.0, 0.2)},
        "high": {0: judged(0.0, 1.0), 1: judged(0.2, 1.0)},
        "sars_tdw": {0: judged(0.7, 0.5), 1: judged(0.5, 0.5), 2: judged(0.5, 0.5)},
    }


def front_of(tmp_path: Path, front: list[str]) -> Comparison:
    arms = dict.fromkeys(("low", "high"), FILE["arms"]["naive"])
    primary = {**FILE["primary"], "against": ["low"]}
    return Comparison.read(write(tmp_path, arms={**arms, "sars_tdw": None}, primary=primary, front=front))


def test_an_arm_meets_the_front_of_its_own_seed(results: Results, tmp_path: Path):
    """Seed 0: .1 beyond (.6, .4). Seed 1: .1 behind (.6, .6). Seed 2 lacks an arm of the front."""
    comparison = front_of(tmp_path, ["low", "high"])
    (found,) = beyond_fronts(comparison, results)
    assert (found.arm, found.plane, found.seeds, found.beyond) == (
        *("sars_tdw", ("oracle_identity", "oracle_prompt")),
        *(2, 1),
    )
    assert found.margin.mean == pytest.approx(0.0)
    content, table = tabulate(comparison, results)
    assert content["beyond_front"][0]["beyond"] == 1
    assert "| arm | beyond in (oracle_identity, oracle_prompt) |" in table
    assert "| sars_tdw | +0.000 [" in table
    assert "] in 1 of 2 |" in table
    assert "The front is the line low, high of the same seed." in table


def test_an_arm_of_the_front_meets_the_line_through_the_others(results: Results, tmp_path: Path):
    """As if it were not part of the front; the ends have no line that they could lie beyond."""
    curved = front_of(tmp_path, ["low", "sars_tdw", "high"])
    found = beyond_fronts(curved, results)
    assert [(each.arm, each.seeds) for each in found] == [("sars_tdw", 2)]
    assert "| sars_tdw (of the front) | +0.000 [" in tabulate(curved, results)[1]
    alone = beyond_fronts(front_of(tmp_path, ["low", "high"]), results)
    assert found == alone


def test_without_the_whole_front_nothing_is_beyond_it(results: Results, tmp_path: Path):
    assert beyond_fronts(front_of(tmp_path, []), results) == []
    unfinished = {arm: each for arm, each in results.items() if arm != "high"}
    assert beyond_fronts(front_of(tmp_path, ["low", "high"]), unfinished) == []
    assert "beyond" not in tabulate(front_of(tmp_path, ["low", "high"]), unfinished)[1]
