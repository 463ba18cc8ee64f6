"""docs/method.md tells of every rule, with the numbers that the code gives."""

from pathlib import Path

import pytest

import trials
from customized_grpo.algorithm import SHAPING_RULES
from rule_planes import FOLDER, PLANES, gaps, plane

PAGE = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", SHAPING_RULES)
def test_every_rule_has_a_row_a_plane_and_a_paragraph(rule: str):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{rule}` | ![{rule}]")]
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == [f"{gap:+.2f}" for gap in gaps(rule)]
    *_, paragraphs = PAGE.partition("**What each is blind to")
    assert f"`{rule}`" in paragraphs


def test_the_weights_have_the_gaps_of_the_code():
    early, late = (", ".join(f"{gap:+.2f}" for gap in gaps(name)) for name in ("linear-early", "linear-late"))
    assert f"| above copies, above drifted | {early} | {late} |" in PAGE


def test_the_table_of_trials_is_that_of_the_rows():
    _, _, rest = PAGE.partition(trials.BEGIN)
    assert rest.partition(trials.END)[0] == trials.table()


def test_the_planes_are_drawn():
    assert {file.stem for file in FOLDER.glob("*.png")} == set(PLANES)


def test_a_plane_is_highest_where_both_rewards_are():
    for rule in SHAPING_RULES:
        values = plane(rule, cells=21)
        assert values[-1, -1] == pytest.approx(values.max().item(), abs=1e-3)
