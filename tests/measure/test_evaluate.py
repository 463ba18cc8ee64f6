"""`evaluate`: the right samples, schedule and seeds; resumed as if never stopped; policies with known answers."""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from customized_grpo.config import ConfigError, load_config, parse_metric
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS, TEST_CRITTERS, TRAINING_CRITTERS, draw_samples
from customized_grpo.files.pretrained import ModelError
from customized_grpo.measure import rows as figures
from customized_grpo.measure.evaluate import (
    EvaluationRequest,
    evaluate,
    make_request,
    summarise,
    table,
    usual_output,
    write_evaluation,
)
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.training.assemble import assemble

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one update in four steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assemble(load_config(TINY, [f"output={folder}", "optimizer.lr=0.001", "model.guidance=0"])).train()
    return folder


def write_list(folder: Path, subjects: int = 4) -> Path:
    """A list of photographs of a kind: noise, two prompts per subject."""
    rng = np.random.default_rng(0)
    entries = []
    for subject in range(subjects):
        name = f"s{subject}.png"
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / name)
        entries += [{"prompt": f"a thing {n}", "image_paths": [name], "subject": f"s{subject}"} for n in range(2)]
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_critters_are_evaluated_on_test_critters(run: Path):
    """Neither those of training nor those that were watched during it."""
    samples = make_request(str(run), [], cases=5).samples()
    assert [sample.id for sample in samples] == [s.id for s in draw_samples(5, TEST_CRITTERS, 0)]
    critters = {sample.extra["critter"] for sample in make_request("critters", []).samples()}
    assert len(critters) == 512
    assert not any(critter in TRAINING_CRITTERS or critter in DEVELOPMENT_CRITTERS for critter in critters)


def test_a_run_on_a_list_is_evaluated_on_what_it_did_not_train_on(tmp_path: Path):
    source = write_list(tmp_path)
    overrides = [f"output={tmp_path / 'run'}", f"data.source={source}", "data.held_out_share=0.5", "updates=1"]
    trainer = assemble(load_config(TINY, overrides))
    trained = {sample.id for sample in trainer.samples}
    trainer.train()
    held_out = make_request(str(tmp_path / "run"), []).samples()
    assert len(held_out) == 4  # two of four subjects; the run's own evaluation may look at fewer
    assert not trained & {sample.id for sample in held_out}
    whole = make_request(str(tmp_path / "run"), [f"data.source={source}"]).samples()
    assert len(whole) == 8
    assert len(make_request(TINY, [f"data.source={source}"]).samples()) == 8
    assert [s.id for s in make_request(TINY, [f"data.source={source}"], cases=4).samples()] == [
        whole[n].id for n in (0, 2, 4, 6)
    ]


def test_an_adapter_brings_the_schedule_it_was_trained_with(run: Path):
    assert load_config("critters").sampling.num_steps == 10
    request = make_request("critters", [], adapter=run / "adapter")
    assert (request.config.sampling.num_steps, request.config.model.guidance) == (4, 0)
    assert make_request(str(run), []).config.sampling.num_steps == 4
    assert make_request(str(run / "adapter"), []).config.sampling.num_steps == 4
    assert make_request(str(run), ["sampling.num_steps=6"]).config.sampling.num_steps == 6
    assert make_request(str(run), [], base=True).config.sampling.num_steps == 4


def test_what_was_trained_on_is_marked(run: Path):
    tuned, base = make_request(str(run), [], metrics=["copy_paste"]), make_request(str(run), [], base=True)
    assert tuned.trained_on() == ["dino", "clip_t"]
    assert base.trained_on() == []
    names = ["dino", "clip_t", "oracle_identity", "oracle_prompt", "joint_success", "copy_paste"]
    assert list(tuned.all_metrics()) == names
    other_view = make_request(str(run), ["rewards.identity.against=other_view"], metrics=["dino"])
    assert other_view.trained_on() == ["dino against=other_view", "clip_t"]
    assert list(other_view.all_metrics())[-1] == "dino"


def test_a_reward_in_two_roles_is_one_metric_that_was_trained_on(run: Path):
    """With quality behind it: everything that was trained on is marked, and nothing else."""
    twice = make_request(str(run), ["rewards.taste={name: clip_t, role: quality, weight: 0.2}"])
    assert list(twice.all_metrics())[:3] == ["dino", "clip_t", "oracle_identity"]
    assert twice.trained_on() == ["dino", "clip_t"]


@pytest.mark.parametrize(("adapter", "stars"), [(True, 3), (False, 0)])
def test_all_rewards_means_all_of_them(adapter: bool, stars: int, run: Path, tmp_path: Path):
    """The image is better on two of three."""
    third = "rewards.taste={name: pickscore, role: quality, weight: 0.2}"
    request = make_request(str(run), [third, "evaluation.metrics=[]"], base=not adapter)
    names = list(request.all_metrics())
    rows = [
        EvaluationRow("a", "s", "p", 0, dict(zip(names, scores, strict=True))) for scores in ((2, 2, 0), (1, 1, 1))
    ]
    (tmp_path / "rows.jsonl").write_text(rows[1].as_line())
    summary = summarise(request, rows[:1], tmp_path)
    assert summary["dominance"]["rewards"] == names
    assert (summary["dominance"]["better"]["mean"], summary["dominance"]["worse"]["mean"]) == (0, 0)
    assert sum(figure["trained_on"] for figure in summary["metrics"].values()) == stars


def test_training_samples_are_not_taken_for_held_out_ones(tmp_path: Path):
    """A list that an adapter was trained on is evaluated whole when it is named by itself."""
    listed = write_list(tmp_path)
    settings = ["updates=1", "evaluation.every=0", f"data.source={listed}", f"output={tmp_path / 'run'}", "device=cpu"]
    assemble(load_config(TINY, settings)).train()
    with pytest.warns(UserWarning, match=r"trained on samples of this data .*customized-grpo evaluate RUN"):
        make_request(TINY, [f"data.source={listed}"], adapter=tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_request(str(tmp_path / "run"), [])
        make_request(TINY, [f"data.source={listed}"], adapter=tmp_path / "run", base=True)
        make_request(TINY, [], adapter=tmp_path / "run")


def test_a_recipe_is_no_folder_that_happens_to_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "critters").mkdir()
    assert make_request("critters", []).adapter is None


def test_a_metric_takes_the_encoder_of_the_reward_of_its_kind(run: Path):
    request = make_request(str(run), ["rewards.identity.model=a/b"], metrics=["copy_paste", "dino model=c/d"])
    metrics = request.all_metrics()
    assert metrics["copy_paste"].own_model == "a/b"
    assert metrics["clip_t"].own_model == "critters"
    assert metrics["dino"].own_model == "a/b"
    assert metrics["dino model=c/d"].own_model == "c/d"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "dino against=nothing",
            "metric 'dino against=nothing': against: input should be 'reference' or 'other_view'",
        ),
        ("dyno", "metric 'dyno': name: no reward is named 'dyno'; did you mean 'dino'?"),
        ("dino modle=x", "metric 'dino modle=x': modle: unknown key; did you mean 'model'?"),
    ],
)
def test_a_metric_that_is_none_is_refused_in_one_line(text: str, problem: str):
    with pytest.raises(ConfigError) as error:
        parse_metric(text)
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value)


def test_a_folder_without_adapter_is_named(run: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ModelError, match=r"no adapter in .*name the folder that holds it"):
        make_request(str(tmp_path), [])
    assert make_request(str(tmp_path), [], base=True).adapter is None
    (tmp_path / "checkpoints" / "step-00020").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"has not ended; name a checkpoint, .*step-00020"):
        make_request(str(tmp_path), [])


# --- rows ------------------------------------------------------------------------------------------------------------


def scores(rows: Sequence[EvaluationRow]) -> Tensor:
    return torch.tensor([list(row.scores.values()) for row in rows])


def test_an_image_is_the_same_whatever_the_batch(run: Path, tmp_path: Path):
    whole = evaluate(make_request(str(run), [], cases=5, images=2), tmp_path / "whole")
    single = evaluate(make_request(str(run), ["groups.rollout_batch=3"], cases=5, images=2), tmp_path / "single")
    assert [row.key for row in single] == [row.key for row in whole]
    assert len({row.key for row in whole}) == 10
    torch.testing.assert_close(scores(single), scores(whole), atol=1e-3, rtol=0)
    pictures = [sorted((tmp_path / name / "images").iterdir()) for name in ("whole", "single")]
    for one, other in zip(*pictures, strict=True):
        assert one.name == other.name
        difference = np.asarray(Image.open(one)).astype(int) - np.asarray(Image.open(other))
        assert np.abs(difference).max() <= 1


def test_two_images_of_a_sample_differ(run: Path, tmp_path: Path):
    rows = evaluate(make_request(str(run), [], cases=1, images=2), tmp_path)
    assert rows[0].sample == rows[1].sample
    assert rows[0].scores["dino"] != rows[1].scores["dino"]


def test_tuned_and_base_see_the_same_noise_and_differ_by_the_adapter(run: Path, tmp_path: Path):
    tuned = evaluate(make_request(str(run), [], cases=4), tmp_path / "tuned")
    base = evaluate(make_request(str(run), [], base=True, cases=4), tmp_path / "base")
    bare = evaluate(make_request(TINY, ["model.guidance=0"], cases=4), tmp_path / "bare")
    assert torch.equal(scores(base), scores(bare))
    assert not torch.equal(scores(tuned), scores(base))
    assert (scores(tuned) - scores(base))[:, :2].abs().max() < 0.5  # a small adapter: noise of its own would do more


def test_a_stopped_evaluation_goes_on_where_it_was(run: Path, tmp_path: Path):
    """Three rows and half of a fourth are there; the rest is made, and nothing twice."""
    request = make_request(str(run), ["groups.rollout_batch=2"], cases=6)
    rows = evaluate(request, tmp_path)
    file = tmp_path / "rows.jsonl"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])
    pictures = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "images").iterdir())}
    again = evaluate(request, tmp_path)
    assert [row.key for row in again] == [row.key for row in rows]
    torch.testing.assert_close(scores(again), scores(rows), atol=1e-3, rtol=0)  # a pixel may round otherwise
    kept = [path.stat().st_mtime_ns == before for path, before in pictures.items()]
    assert kept == [True] * 3 + [False] * 3
    assert len(file.read_text().splitlines()) == 6
    finished = file.stat().st_size
    assert evaluate(request, tmp_path) == again
    assert file.stat().st_size == finished


def test_another_evaluation_in_the_folder_is_refused_with_what_differs(run: Path, tmp_path: Path):
    evaluate(make_request(str(run), [], cases=2), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"another evaluation: images 1 instead of 2\. Choose another --output"):
        evaluate(make_request(str(run), [], cases=2, images=2), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"adapter .* instead of None"):
        evaluate(make_request(str(run), [], cases=2, base=True), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no evaluation"):
        evaluate(make_request(str(run), [], cases=2), tmp_path / "full")


def test_what_cannot_be_scored_is_counted(tmp_path: Path):
    """The oracle knows nothing of photographs, and they have no other view."""
    source = write_list(tmp_path)
    request = make_request(TINY, [f"data.source={source}"], metrics=["copy_paste"], cases=2)
    summary = summarise(request, evaluate(request, tmp_path / "out"))
    assert summary["metrics"]["oracle_prompt"] == {"mean": None, "unscored": 2, "trained_on": False}
    assert summary["metrics"]["copy_paste"]["unscored"] == 2
    assert summary["metrics"]["dino"]["unscored"] == 0
    assert summary["per_subject"]["s0"]["oracle_prompt"] is None
    assert "oracle_prompt     could not be scored   2 unscored" in table(summary)


@pytest.mark.parametrize(("subjects", "over"), [(1, "images"), (2, "subjects")])
def test_the_table_says_what_its_intervals_are_over(subjects: int, over: str, tmp_path: Path):
    request = make_request(TINY, [f"data.source={write_list(tmp_path, subjects)}", "evaluation.metrics=[]"])
    summary = summarise(request, evaluate(request, tmp_path / "out"))
    assert summary["metrics"]["dino"]["low"] < summary["metrics"]["dino"]["high"]
    assert table(summary).splitlines()[0].endswith(f"95 % intervals over {over}")


def test_the_command_writes_figures_and_pictures(run: Path, tmp_path: Path):
    from customized_grpo.cli import app

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    common = ["evaluate", str(run), "--cases", "4", "--device", "cpu"]
    first = CliRunner().invoke(app, [*common, "--base", "--output", str(base)], catch_exceptions=False)
    second = CliRunner().invoke(app, [*common, "--output", str(tuned), "--against", str(base)], catch_exceptions=False)
    assert "4 images of 4 subjects" in first.output
    assert "dino *" in second.output
    assert "dino *" not in first.output
    assert "worse on all" in second.output
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["dominance"]["compared"] == 4
    assert summary["dominance"]["rewards"] == ["dino", "clip_t"]
    assert len(summary["per_prompt"]) == len({row.prompt for row in figures.read_rows(tuned / "rows.jsonl")})
    assert len(list((tuned / "images").iterdir())) == 4
    assert load_config(str(tuned)) == make_request(str(run), []).config


def test_an_evaluation_goes_into_its_run_and_not_into_a_checkpoint(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`keep_last` removes checkpoints; a folder elsewhere that is called so keeps its evaluation."""
    checkpoint, other = run / "checkpoints" / "step-00001", tmp_path / "checkpoints" / "mine"
    shutil.copytree(run / "adapter", other)
    expected = {
        str(run): run / "evaluation-tuned",
        str(run / "adapter"): run / "adapter" / "evaluation-tuned",
        str(checkpoint): run / "evaluation-step-00001",
        str(other): other / "evaluation-tuned",
    }
    assert {target: usual_output(make_request(target, []), target) for target in expected} == expected
    assert usual_output(make_request(str(checkpoint), [], base=True), str(checkpoint)) == run / "evaluation-base"
    assert usual_output(make_request(TINY, []), TINY) == Path("evaluations/evaluation-base")
    for where, target in ((checkpoint, "."), (run, "checkpoints/step-00001")):
        monkeypatch.chdir(where)
        assert usual_output(make_request(target, []), target).absolute() == run / "evaluation-step-00001"


def test_an_evaluation_that_was_sampled_otherwise_is_not_compared_with(run: Path, tmp_path: Path):
    """The recipe has ten steps and a guidance, the adapter four and none; with --base the base is sampled as it is."""
    base = make_request("critters", ["evaluation.metrics=[]", "device=cpu"], cases=2)
    write_evaluation(base, tmp_path / "base", None)
    tuned = make_request("critters", ["evaluation.metrics=[]", "device=cpu"], adapter=run / "adapter", cases=2)
    with pytest.raises(ConfigError) as refused:
        write_evaluation(tuned, tmp_path / "tuned", tmp_path / "base")
    assert str(refused.value) == (
        f"{tmp_path / 'base'} was sampled otherwise: num_steps 10 instead of 4; guidance 2.5 instead of 0.0. Make it "
        "again by this command with --base in the place of --against, and a new --output: the base is then sampled as "
        "the adapter is"
    )
    assert not (tmp_path / "tuned").exists()
    alike = make_request("critters", ["evaluation.metrics=[]"], adapter=run / "adapter", base=True, cases=2)
    write_evaluation(alike, tmp_path / "alike", None)
    assert "better on all" in write_evaluation(tuned, tmp_path / "tuned", tmp_path / "alike")


def test_a_metric_named_twice_is_one(run: Path):
    request = EvaluationRequest(
        load_config(str(run)), metrics=(parse_metric("copy_paste"), parse_metric("copy_paste"))
    )
    assert list(request.all_metrics()).count("copy_paste") == 1
