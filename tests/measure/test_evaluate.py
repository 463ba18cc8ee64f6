"""`evaluate`: the same rows in any batch, resumed as if never stopped, summarised, compared with a base."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.config import ConfigError, load_config
from customized_grpo.measure.evaluate import evaluate, summarise, table, write_evaluation
from customized_grpo.measure.request import make_request
from customized_grpo.measure.rows import EvaluationRow, read_rows

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


def scores(rows: Sequence[EvaluationRow]) -> Tensor:
    return torch.tensor([list(row.scores.values()) for row in rows])


def test_an_image_is_the_same_whatever_the_batch(trained: Path, tmp_path: Path):
    large = evaluate(make_request(str(trained), [], cases=4, images=2), tmp_path / "large")
    small = evaluate(make_request(str(trained), ["groups.rollout_batch=3"], cases=4, images=2), tmp_path / "small")
    assert [row.key for row in small] == [row.key for row in large]
    assert len({row.key for row in large}) == 8
    assert large[0].sample == large[1].sample
    assert large[0].scores["dino"] != large[1].scores["dino"]  # two images of a sample have different seeds
    torch.testing.assert_close(scores(small), scores(large), atol=1e-3, rtol=0)
    pictures = [sorted((tmp_path / name / "images").iterdir()) for name in ("large", "small")]
    for first, second in zip(*pictures, strict=True):
        assert first.name == second.name
        difference = np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(second))
        assert np.abs(difference).max() <= 1


def test_tuned_and_base_see_the_same_noise_and_differ_by_the_adapter(trained: Path, tmp_path: Path):
    tuned = evaluate(make_request(str(trained), [], cases=4), tmp_path / "tuned")
    base = evaluate(make_request(str(trained), [], base=True, cases=4), tmp_path / "base")
    bare = evaluate(make_request(TINY, ["model.guidance=0"], cases=4), tmp_path / "bare")
    assert torch.equal(scores(base), scores(bare))
    assert not torch.equal(scores(tuned), scores(base))
    assert (scores(tuned) - scores(base))[:, :2].abs().max() < 0.5  # the adapter is small: new noise would do more


def test_a_stopped_evaluation_continues(trained: Path, tmp_path: Path):
    """Three rows and half of a fourth exist: the other three images are made, and none twice."""
    request = make_request(str(trained), ["groups.rollout_batch=2"], cases=6)
    rows = evaluate(request, tmp_path)
    file = tmp_path / "rows.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])
    pictures = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "images").iterdir())}
    again = evaluate(request, tmp_path)
    assert [row.key for row in again] == [row.key for row in rows]
    torch.testing.assert_close(scores(again), scores(rows), atol=1e-3, rtol=0)  # a pixel may round differently
    kept = [path.stat().st_mtime_ns == before for path, before in pictures.items()]
    assert kept == [True] * 3 + [False] * 3
    assert len(file.read_text().splitlines()) == 6
    finished = file.stat().st_size
    assert evaluate(request, tmp_path) == again
    assert file.stat().st_size == finished


def test_a_folder_with_something_else_is_refused(trained: Path, tmp_path: Path):
    evaluate(make_request(str(trained), [], cases=2), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"another evaluation: images 1 instead of 2\. Choose another --output"):
        evaluate(make_request(str(trained), [], cases=2, images=2), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"adapter .* instead of None"):
        evaluate(make_request(str(trained), [], cases=2, base=True), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and is not an evaluation; choose another --output"):
        evaluate(make_request(str(trained), [], cases=2), tmp_path / "full")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [("{", r"settings\.json cannot be read \(Expecting"), ("[]", "not written by an evaluation: it holds a list")],
)
def test_damaged_settings_are_one_line(settings: str, problem: str, tmp_path: Path):
    (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(ConfigError, match=f"{problem}.*; choose another --output, or remove the folder$"):
        evaluate(make_request(TINY, [], cases=2), tmp_path)


def test_unscored_images_are_counted(write_list: Callable[..., Path], tmp_path: Path):
    """The oracle cannot read photographs, and these have no other view."""
    request = make_request(TINY, [f"data.source={write_list()}"], metrics=["copy_paste"], cases=2)
    with pytest.warns(
        UserWarning, match="^copy_paste cannot score 2 of 2 samples, which have no other view of the subject$"
    ):
        rows = evaluate(request, tmp_path / "out")
    summary = summarise(request, rows)
    assert summary["metrics"]["oracle_prompt"] == {"mean": None, "unscored": 2, "trained_on": False}
    assert summary["metrics"]["copy_paste"]["unscored"] == 2
    assert summary["metrics"]["dino"]["unscored"] == 0
    assert [means["oracle_prompt"] for means in summary["per_subject"].values()] == [None, None]
    assert "oracle_prompt     could not be scored   2 unscored" in table(summary)


def test_why_a_metric_gave_no_score_is_said_once(write_list: Callable[..., Path], tmp_path: Path):
    """Nothing listens at this address; the oracle cannot read photographs, and gives no reason."""
    settings = [f"data.source={write_list()}", "groups.rollout_batch=1"]
    request = make_request(TINY, settings, metrics=["http url=http://localhost:1/score retries=0"], cases=2)
    with pytest.warns(UserWarning, match="could not score some images") as warned:
        evaluate(request, tmp_path / "out")
    said = [str(each.message).split(" could not score some images: ") for each in warned]
    reasons = dict(each for each in said if len(each) == 2)
    assert len([each for each in said if each[0] in reasons]) == len(reasons)
    http = "http://localhost:1/score: no answer: [Errno 111] Connection refused"
    assert reasons["http url=http://localhost:1/score"] == http
    assert reasons["oracle_prompt"] == "it gives no reason; check-rewards shows what it can score"


@pytest.mark.parametrize(("subjects", "over"), [(1, "images"), (2, "subjects")])
def test_the_table_states_what_is_resampled(subjects: int, over: str, write_list: Callable[..., Path], tmp_path: Path):
    request = make_request(TINY, [f"data.source={write_list(subjects)}", "evaluation.metrics=[]"])
    summary = summarise(request, evaluate(request, tmp_path / "out"))
    assert summary["metrics"]["dino"]["low"] < summary["metrics"]["dino"]["high"]
    assert table(summary).splitlines()[0].endswith(f"95 % intervals over {over}")


def test_the_command_writes_summary_rows_and_images(trained: Path, tmp_path: Path):
    from customized_grpo.cli import app

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    common = ["evaluate", str(trained), "--cases", "4", "--device", "cpu"]
    first = CliRunner().invoke(app, [*common, "--base", "--output", str(base)], catch_exceptions=False)
    second = CliRunner().invoke(app, [*common, "--output", str(tuned), "--against", str(base)], catch_exceptions=False)
    assert "4 images of 4 subjects" in first.output
    assert "dino *" in second.output
    assert "dino *" not in first.output
    assert "worse on all" in second.output
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["dominance"]["compared"] == 4
    means = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (base, tuned)]
    for name, figure in summary["metrics"].items():
        assert figure["change"]["mean"] == pytest.approx(means[1][name]["mean"] - means[0][name]["mean"], abs=1e-9)
        (line,) = (line for line in second.output.splitlines() if line.startswith(name))
        assert f"{figure['change']['mean']:+.3f} [" in line
        assert len(line) < 80
    assert all("change" not in figure for figure in means[0].values())
    assert summary["dominance"]["rewards"] == ["dino", "clip_t"]
    assert len(summary["per_prompt"]) == len({row.prompt for row in read_rows(tuned / "rows.jsonl")})
    assert len(list((tuned / "images").iterdir())) == 4
    assert load_config(str(tuned)) == make_request(str(trained), []).config


def test_the_command_reads_the_data_once(write_list: Callable[..., Path], reads: list[str], tmp_path: Path):
    from customized_grpo.cli import app

    common = ["evaluate", TINY, f"data.source={write_list()}", "evaluation.metrics=[]", "--cases", "2", "--base"]
    for name, further in (("base", []), ("again", ["--against", str(tmp_path / "base")])):
        reads.clear()
        arguments = [*common, *further, "--output", str(tmp_path / name), "--device", "cpu"]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert (tmp_path / name / "summary.json").exists()
        assert reads.count("list.json") == 1


def test_a_base_that_was_sampled_with_other_settings_is_not_compared_with(trained: Path, tmp_path: Path):
    """The recipe has ten steps and a guidance, the adapter four and none; --base takes the adapter's settings."""
    settings = ["evaluation.metrics=[]", "device=cpu"]
    write_evaluation(make_request("critters", settings, cases=2), tmp_path / "base", None)
    tuned = make_request("critters", settings, adapter=trained / "adapter", cases=2)
    with pytest.raises(ConfigError) as refused:
        write_evaluation(tuned, tmp_path / "tuned", tmp_path / "base")
    assert str(refused.value) == (
        f"{tmp_path / 'base'} was generated with other settings: num_steps 10 instead of 4; guidance 2.5 instead of "
        "0.0. Make it again with this command, but with --base instead of --against, and a new --output"
    )
    assert not (tmp_path / "tuned").exists()
    base = make_request("critters", settings, adapter=trained / "adapter", base=True, cases=2)
    write_evaluation(base, tmp_path / "again", None)
    assert "better on all" in write_evaluation(tuned, tmp_path / "tuned", tmp_path / "again")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "rewards.identity.model=critters-dye",
            "base was measured otherwise: metrics.dino dino model=critters instead of dino model=critters-dye. Make",
        ),
        ("model.reference_size=16", "base was generated with other settings: reference_size None instead of 16. Make"),
    ],
)
def test_scores_of_another_encoder_or_pictures_of_another_base_are_not_compared(
    setting: str, problem: str, trained: Path, tmp_path: Path
):
    evaluate(make_request(str(trained), [], base=True, cases=1), tmp_path / "base")
    with pytest.raises(ConfigError, match=problem):
        write_evaluation(make_request(str(trained), [setting], cases=1), tmp_path / "tuned", tmp_path / "base")
    assert not (tmp_path / "tuned").exists()


def test_a_base_without_the_rewards_or_the_samples_is_refused_before_anything_is_generated(
    trained: Path, tmp_path: Path
):
    base, tuned = make_request(str(trained), [], base=True, cases=1), make_request(str(trained), [], cases=1)
    evaluate(base, tmp_path / "base")
    rewritten = read_rows(tmp_path / "base" / "rows.jsonl")[0]
    for row, problem in (
        (replace(rewritten, scores={"dino": 1.0}), "base has no scores of clip_t. Make it again"),
        (replace(rewritten, sample="another"), "base and this evaluation have no sample in common. Make it again"),
    ):
        (tmp_path / "base" / "rows.jsonl").write_text(row.as_line())
        with pytest.raises(ConfigError, match=problem):
            write_evaluation(tuned, tmp_path / "tuned", tmp_path / "base")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(("adapter", "stars"), [(True, 2), (False, 0)])
def test_dominance_needs_all_rewards(adapter: bool, stars: int, trained: Path):
    """The image is better on two of three: neither better nor worse on all. The adapter was trained on two."""
    third = "rewards.taste={name: pickscore, role: quality, weight: 0.2}"
    request = make_request(str(trained), [third, "evaluation.metrics=[]"], base=not adapter)
    names = list(request.all_metrics())
    tuned, before = (
        EvaluationRow("a", "s", "p", 0, dict(zip(names, scores, strict=True))) for scores in ((2, 2, 0), (1, 1, 1))
    )
    summary = summarise(request, [tuned], [before])
    assert summary["dominance"]["rewards"] == names
    assert (summary["dominance"]["better"]["mean"], summary["dominance"]["worse"]["mean"]) == (0, 0)
    assert sum(metric["trained_on"] for metric in summary["metrics"].values()) == stars


# --- joint_calibrated ------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run with the file that a calibrated run keeps."""
    run = tmp_path / "calibrated"
    shutil.copytree(trained, run)
    (run / "calibration.yaml").write_text("identity: {bad: 0.1, good: 0.8}\nprompt: {bad: 0, good: 0.5}\n")
    return run


def test_the_calibrated_figure_of_a_run_is_made_of_its_scores(calibrated: Path, tmp_path: Path):
    """q of identity: from 0 at .1 to 1 at .8, no more; of the prompt: twice the score, 0 below 0, without a bound."""
    for base in (False, True):
        output = tmp_path / f"output-{base}"
        printed = write_evaluation(make_request(str(calibrated), [], base=base, cases=4), output, None)
        rows = read_rows(output / "rows.jsonl")
        assert "joint_calibrated" not in rows[0].scores
        qualities = [
            min(max((row.scores["dino"] - 0.1) / 0.7, 0), 1) * max(2 * row.scores["clip_t"], 0) for row in rows
        ]
        figure = json.loads((output / "summary.json").read_text())["metrics"]["joint_calibrated"]
        assert figure["mean"] == pytest.approx(sum(qualities) / 4, abs=1e-6)
        assert figure["low"] <= figure["mean"] <= figure["high"]
        assert figure["trained_on"] is not base
        assert f"joint_calibrated{'' if base else ' *'} " in printed


def test_the_adapter_brings_its_calibration(calibrated: Path):
    (calibrated / "calibration.yaml").rename(calibrated / "adapter" / "calibration.yaml")
    assert make_request(TINY, [], adapter=calibrated / "adapter").calibrations["identity"].good == 0.8
    assert not make_request(TINY, []).calibrations


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("identity: {bad: 0, good: 1}", "rewards.prompt is missing"),
        (
            "identity: {bad: 0, good: 1, reward: dino model=critters region=centre}\nprompt: {bad: 0, good: 1}",
            "rewards.identity was 'dino model=critters region=centre' and is 'dino model=critters'",
        ),
    ],
)
def test_a_calibration_of_other_rewards_leaves_the_figure_out(text: str, problem: str, calibrated: Path):
    (calibrated / "calibration.yaml").write_text(text)
    with pytest.warns(UserWarning, match=f"joint_calibrated is left out: .*{problem}"):
        assert make_request(str(calibrated), []).calibrations == {}
