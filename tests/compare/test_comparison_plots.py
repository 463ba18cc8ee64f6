"""The plots of a comparison: which ones are drawn, and what they show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from comparison_files import TINY
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from customized_grpo.calibration.intervals import over_seeds
from customized_grpo.compare.comparison import Comparison, Results
from customized_grpo.compare.plots import GREY, plots
from customized_grpo.compare.tables import write_report

NAIVE = {"shaping.rule": "linear", "weighting.kind": "constant"}
WEIGHTS = {f"prompt.{n}": {**NAIVE, "weighting.prompt": n / 10} for n in (3, 5, 7)}
FRONT = ["prompt.3", "prompt.5", "prompt.7"]
FILE: dict[str, Any] = {
    "recipe": TINY,
    "seeds": [0, 1],
    "primary": {"arm": "sars_tdw", "against": ["prompt.5"]},
    "arms": {**WEIGHTS, "sars_tdw": None},
}


def comparison(folder: Path, **changes: Any) -> Comparison:
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump({**FILE, "output": str(folder / "out"), **changes}, sort_keys=False))
    found = Comparison.read(file)
    found.output.mkdir(exist_ok=True)
    return found


def result(place: int, seed: int, trained: bool = True) -> dict[str, Any]:
    """Identity and prompt end at .5 and .6, plus .1 per place of the arm, plus or minus .01 by seed."""
    shift = 0.1 * place + (0.01 if seed else -0.01)
    names = ("dino", "clip_t", "oracle_identity", "oracle_prompt")
    test = {name: (0.5 if n % 2 == 0 else 0.6) + shift for n, name in enumerate(names)}
    held_out = [
        {"update": n, "identity_reward": 0.4 + n * shift, "prompt_reward": 0.3, "oracle_prompt": 0.1}
        for n in (0, 1, 2)
    ]
    updates = [{"update": n, "conflict_excess": 0.1, "correlation": -0.2} for n in (1, 2)]
    return {"test": test, "warnings": [], **({"held_out": held_out, "updates": updates} if trained else NOTHING)}


NOTHING: dict[str, Any] = {"held_out": [], "updates": []}


@pytest.fixture
def results() -> Results:
    """prompt.7 is not finished yet."""
    found = {"base": {seed: result(0, seed, trained=False) for seed in (0, 1)}}
    return found | {
        arm: {seed: result(place, seed) for seed in (0, 1)}
        for place, arm in ((1, "prompt.3"), (2, "prompt.5"), (3, "sars_tdw"))
    }


def drawn(comparison: Comparison, results: Results) -> dict[str, Figure]:
    figures = {
        arm: {metric: over_seeds([each["test"][metric] for each in runs.values()]) for metric in runs[0]["test"]}
        for arm, runs in results.items()
    }
    return plots(comparison, results, figures)


def named(figure: Figure) -> list[str]:
    """The names in the legend of the figure or of its axes."""
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    (legend,) = legends
    return [text.get_text() for text in legend.get_texts()]


# --- which ones are drawn --------------------------------------------------------------------------------------------


def test_without_selections_all_arms_share_their_curves(results: Results, tmp_path: Path):
    found = drawn(comparison(tmp_path), results)
    assert {*found} == {"plane.png", "paths.png", "curves.png", "conflict.png"}
    assert named(found["curves.png"]) == ["prompt.3 (2)", "prompt.5 (2)", "sars_tdw (2)"]
    assert [axes.get_title() for axes in found["curves.png"].axes] == [
        *("identity reward", "prompt reward", "oracle prompt")
    ]


def test_with_selections_each_has_its_own_curves_without_arms_that_are_not_finished(results: Results, tmp_path: Path):
    selections = {"front": FRONT, "later": ["prompt.7"]}
    found = drawn(comparison(tmp_path, selections=selections), results)
    assert {*found} == {"plane.png", "paths.png", "curves-front.png", "conflict-front.png"}
    for name in ("curves-front.png", "conflict-front.png"):
        assert named(found[name]) == ["prompt.3 (2)", "prompt.5 (2)"]


def test_an_arm_looks_the_same_in_every_plot(results: Results, tmp_path: Path):
    """No matter which arms are finished or selected."""
    curves = drawn(comparison(tmp_path), results)["curves.png"]
    part = {arm: results[arm] for arm in ("base", "sars_tdw")}
    alone = drawn(comparison(tmp_path, selections={"one": ["sars_tdw"]}), part)["curves-one.png"]
    looks = [(line.get_color(), line.get_marker()) for line in (curves.axes[0].lines[2], alone.axes[0].lines[0])]
    assert looks[0] == looks[1]
    others = {(line.get_color(), line.get_marker()) for line in curves.axes[0].lines}
    assert len(others) == 3


def test_forty_arms_differ_in_colour_or_marker(tmp_path: Path):
    arms = {f"arm{n}": {"shaping.gamma": n / 100} for n in range(40)}
    file = comparison(tmp_path, arms=arms, primary={"arm": "arm1", "against": ["arm0"]})
    figure = drawn(file, {arm: {0: result(1, 0)} for arm in arms})["curves.png"]
    assert len({(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}) == 40


def test_the_folder_holds_what_is_drawn_and_nothing_of_an_older_file(results: Results, tmp_path: Path):
    write_report(comparison(tmp_path), results)
    file = comparison(tmp_path, selections={"front": FRONT}, front=FRONT)
    write_report(file, results)
    names = {path.name for path in file.output.glob("*")}
    assert names == {
        *("comparison.json", "table.md", "plane.png", "paths.png", "curves-front.png", "conflict-front.png")
    }
    for name in names - {"comparison.json", "table.md"}:
        picture = Image.open(file.output / name)
        assert picture.width == 1320
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


# --- the plane -------------------------------------------------------------------------------------------------------


def test_the_plane_has_a_point_per_arm_with_its_intervals(results: Results, tmp_path: Path):
    """Two values .02 apart: the mean lies in the middle, t = 12.706 times .01 to each side."""
    figure = drawn(comparison(tmp_path), results)["plane.png"]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == [
        *[("dino", "clip_t")] * 2,  # all arms; enlarged, those that beat the base
        *[("oracle_identity", "oracle_prompt")] * 2,
    ]
    assert named(figure) == ["base", "prompt.3", "prompt.5", "sars_tdw"]
    for axes in figure.axes:
        drawn_points: Any = axes.containers  # a marker's line, caps, bars; matplotlib annotates tuples of anything
        points = [line.get_xydata().tolist() for line, *_ in drawn_points]
        assert points == [[pytest.approx([0.5 + 0.1 * place, 0.6 + 0.1 * place])] for place in range(4)]
        ((across, upright),) = [bars for _, _, bars in drawn_points[:1]]
        assert across.get_segments()[0][:, 0] == pytest.approx([0.5 - 0.12706, 0.5 + 0.12706], abs=1e-4)
        assert upright.get_segments()[0][:, 1] == pytest.approx([0.6 - 0.12706, 0.6 + 0.12706], abs=1e-4)
        assert to_hex(drawn_points[0][0].get_color()) == GREY


def test_arms_that_beat_the_base_in_both_are_shown_enlarged(results: Results, tmp_path: Path):
    """Base (.5, .6), arms at (.6, .7), (.7, .8), (.8, .9); the last one loses its prompt."""
    for each in results["sars_tdw"].values():
        each["test"]["clip_t"] = 0.1
    complete, close, *_ = drawn(comparison(tmp_path), results)["plane.png"].axes
    assert complete.get_xlim()[0] < 0.5
    assert complete.get_ylim()[0] < 0.1
    assert close.get_xlim() == pytest.approx((0.585, 0.715))  # .6 to .7 and 15 % of it to both sides
    assert close.get_ylim() == pytest.approx((0.685, 0.815))
    for each in results["prompt.5"].values():
        each["test"]["dino"] = 0.1
    axes = drawn(comparison(tmp_path), results)["plane.png"].axes  # a single arm is left: nothing to enlarge
    assert [each.get_ylabel() for each in axes if each.get_ylabel() == "clip_t"] == ["clip_t"]


def test_the_front_is_a_line_in_the_files_order(results: Results, tmp_path: Path):
    file = comparison(tmp_path, front=["prompt.5", "prompt.7", "prompt.3"])
    figure = drawn(file, results)["plane.png"]
    assert named(figure)[-1] == "front"
    line = next(line for line in figure.axes[0].lines if line.get_label() == "front")
    assert np.ravel(line.get_xdata()) == pytest.approx([0.7, 0.6])  # prompt.7 has no end yet
    del results["prompt.3"]
    assert "front" not in named(drawn(file, results)["plane.png"])  # a line of one point


def test_the_plane_has_the_pairs_that_all_arms_were_tested_on(results: Results, tmp_path: Path):
    """An arm trained on another identity reward: its own pair is drawn if all others were tested on it."""
    arms = {**FILE["arms"], "view": {"rewards.identity.against": "other_view"}}
    file = comparison(tmp_path, arms=arms)
    results["view"] = {seed: result(1, seed) for seed in (0, 1)}
    for runs in (results["view"], results["sars_tdw"]):
        for each in runs.values():
            each["test"]["dino against=other_view"] = 0.4
    labels = [axes.get_xlabel() for axes in drawn(file, results)["plane.png"].axes]
    assert labels == ["dino", "dino", "oracle_identity", "oracle_identity"]
    for each in [each for runs in results.values() for each in runs.values()]:
        each["test"]["dino against=other_view"] = 0.4
    labels = [axes.get_xlabel() for axes in drawn(file, results)["plane.png"].axes]
    assert labels == [
        *["dino"] * 2,
        "dino against=other_view",
        *["oracle_identity"] * 2,
        "",
    ]  # one view: no arm is better


def test_one_seed_is_a_point_without_intervals_and_the_base_alone_is_no_plane(results: Results, tmp_path: Path):
    single = {arm: {0: runs[0]} for arm, runs in results.items()}
    points: Any = drawn(comparison(tmp_path), single)["plane.png"].axes[0].containers
    assert all(not bars for _, _, bars in points)
    assert drawn(comparison(tmp_path), {"base": results["base"]}) == {}


def test_a_path_holds_the_evaluations_that_have_both_figures(results: Results, tmp_path: Path):
    """Identity could not be scored at update 1 of one seed."""
    del results["prompt.3"][1]["held_out"][1]["identity_reward"]
    figure = drawn(comparison(tmp_path), results)["paths.png"]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "prompt.3")
    assert np.ravel(line.get_xdata()) == pytest.approx([0.4, 0.6])  # updates 0 and 2: .4 + 2 * .1
