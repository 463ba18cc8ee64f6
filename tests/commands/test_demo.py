"""The demo from the command to the pictures; only updates, groups and cases are fewer than usual."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from customized_grpo.cli import app
from customized_grpo.commands import demo as commands
from customized_grpo.config import load_config
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples

METRICS = ("identity_reward", "prompt_reward", "oracle_identity", "oracle_prompt", "joint_success", "copy_paste")
CASES = 12
SMALL = ("data.train_samples=16", "data.held_out_samples=4", "groups.prompts=2", "groups.size=4")


def run_demo(folder: Path, *options: str) -> Result:
    arguments = ["demo", "--output", str(folder), "--updates", "2", "--cases", str(CASES), "--device", "cpu", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "load_config", lambda recipe, overrides: load_config(recipe, [*overrides, *SMALL]))
        return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder)


def test_the_summary_has_every_metric_with_its_interval(demo: tuple[Path, Result]):
    summary = json.loads((demo[0] / "summary.json").read_text())
    assert (summary["seed"], summary["cases"], summary["cases_unseen_combinations"]) == (0, CASES, CASES // 4)
    assert summary["seconds"]["install_excluded_total"] > summary["seconds"]["training"] > 0
    for part in ("base", "tuned", "base_unseen_combinations", "tuned_unseen_combinations"):
        assert {*summary[part]} == {*METRICS}
        for figure in summary[part].values():
            assert {*figure} == {"mean", "low", "high"}
            assert figure["low"] <= figure["mean"] <= figure["high"]
    assert summary["base"] != summary["tuned"]


def test_an_existing_folder_is_refused(demo: tuple[Path, Result]):
    answer = CliRunner().invoke(app, ["demo", "--output", str(demo[0])])
    assert (
        str(answer.exception)
        == f"{demo[0]} exists; name another folder with --output, or leave it out for runs/demo-N"
    )


def test_the_table_repeats_the_summary(demo: tuple[Path, Result]):
    folder, result = demo
    summary = json.loads((folder / "summary.json").read_text())
    rows = [line for line in result.output.splitlines() if line.startswith("joint success")]
    assert len(rows) == 2
    for row, part in zip(rows, ("", "_unseen_combinations"), strict=True):
        base, tuned = (summary[f"{arm}{part}"]["joint_success"] for arm in ("base", "tuned"))
        expected = [f"{arm['mean']:.3f} [{arm['low']:.3f}, {arm['high']:.3f}]" for arm in (base, tuned)]
        assert row.split(None, 2)[2].startswith(expected[0])
        assert expected[1] in row
        assert row.endswith(f"{tuned['mean'] - base['mean']:+.3f}")


def test_the_first_twelve_cases_are_drawn_in_list_order(demo: tuple[Path, Result]):
    """Twelve cards in three columns; the reference of the first test case is the first picture on the page."""
    page = Image.open(demo[0] / "cases.png").convert("RGB")
    reference = draw_samples(CASES, TEST_CRITTERS, 0)[0].reference_images()[0]
    found = page.crop((18, 18 + 18, 18 + 128, 18 + 18 + 128))
    assert found.tobytes() == reference.resize((128, 128), Image.Resampling.NEAREST).tobytes()
    assert page.width == 18 + 3 * (3 * 134 - 6 + 18)


def test_the_curves_are_a_picture_with_all_three_colours(demo: tuple[Path, Result]):
    picture = Image.open(demo[0] / "curves.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(maxcolors=1 << 20) or []}
    assert {(0xC2, 0x57, 0x1A), (0x1A, 0x6F, 0xC2), (0x2A, 0x8A, 0x4A)} <= colours


def test_the_report_shows_the_measured_cases(demo: tuple[Path, Result]):
    folder, result = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"browser: {folder / 'report.html'}" in result.output
    for sample in draw_samples(CASES, TEST_CRITTERS, 0):
        assert sample.prompt in page
    cases = json.loads((folder / "cases" / "tuned" / "cases.json").read_text())
    assert len(cases) == CASES  # without those of unseen combinations
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(case["scores"]["joint_success"] for case in cases) / CASES == summary["tuned"]["joint_success"]["mean"]


def test_the_recipe_is_that_of_training_or_the_papers(demo: tuple[Path, Result], tmp_path: Path):
    trained = load_config(str(demo[0] / "run"))
    assert (trained.shaping, trained.sampling.finish_steps) == (load_config("critters").shaping, commands.FINISH_STEPS)
    assert "by the recipe critters-paper" in run_demo(tmp_path / "paper", "--recipe", "critters-paper").output
    paper = load_config(str(tmp_path / "paper" / "run"))
    assert (paper.shaping.rule, paper.weighting.kind) == ("sars", "tdw")


def test_the_adapter_is_kept(demo: tuple[Path, Result]):
    assert (demo[0] / "run" / "adapter" / "pytorch_lora_weights.safetensors").is_file()
