"""What `evaluate` is asked for: the right samples, schedule, metrics and folder."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.config import ConfigError, load_config
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS, TEST_CRITTERS, TRAINING_CRITTERS, draw_samples
from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import ModelError
from customized_grpo.measure.request import EvaluationRequest, default_output, make_request
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.run.own_samples import OWN_SAMPLES
from customized_grpo.training.assemble import assemble

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


def test_critters_are_evaluated_on_test_critters(trained: Path):
    """Not on those of training, nor on those that were watched during it."""
    samples = make_request(str(trained), [], cases=5).samples
    assert [sample.id for sample in samples] == [s.id for s in draw_samples(5, TEST_CRITTERS, 0)]
    critters = {sample.extra["critter"] for sample in make_request("critters", []).samples}
    assert len(critters) == 512
    assert not any(critter in TRAINING_CRITTERS or critter in DEVELOPMENT_CRITTERS for critter in critters)


def test_a_run_on_a_list_is_evaluated_on_what_it_did_not_train_on(write_list: Callable[..., Path], tmp_path: Path):
    source = write_list()
    overrides = [f"output={tmp_path / 'run'}", f"data.source={source}", "data.held_out_share=0.5", "updates=1"]
    trainer = assemble(load_config(TINY, overrides))
    trained_on = {sample.id for sample in trainer.samples}
    trainer.train()
    held_out = make_request(str(tmp_path / "run"), []).samples
    assert len(held_out) == 4  # two of four subjects; the run's own evaluation may look at fewer
    assert not trained_on & {sample.id for sample in held_out}
    with pytest.warns(UserWarning, match="the adapter was trained on 4 of these 8 samples"):
        everything = make_request(str(tmp_path / "run"), [f"data.source={source}"]).samples
    assert len(everything) == 8
    assert make_request(TINY, [f"data.source={source}"]).samples == everything
    assert len({sample.subject for sample in make_request(TINY, [f"data.source={source}"], cases=4).samples}) == 4


def test_an_adapter_brings_the_schedule_it_is_to_be_used_with(trained: Path):
    assert load_config("critters").evaluation_steps == 10
    request = make_request("critters", [], adapter=trained / "adapter")
    assert (request.config.evaluation_steps, request.config.model.guidance) == (4, 0)
    assert make_request(str(trained), []).config.evaluation_steps == 4
    assert make_request(str(trained / "adapter"), []).config.evaluation_steps == 4
    assert make_request(str(trained), ["sampling.num_steps=6"]).config.evaluation_steps == 6
    assert make_request(str(trained), [], base=True).config.evaluation_steps == 4


def test_a_recipe_is_evaluated_with_its_steps_of_evaluation(trained: Path):
    """Not with those of training; what a user sets of either of the two wins."""
    few = "evaluation.num_steps=7"
    assert make_request(TINY, [few]).config.evaluation_steps == 7
    assert make_request(TINY, [few, "sampling.num_steps=6"]).config.evaluation_steps == 7
    settings = make_request(str(trained), [few]).settings
    assert settings["sampling"]["num_steps"] == 7
    changed = make_request(str(trained), ["sampling.num_steps=6"], adapter=trained / "adapter")
    assert (changed.config.evaluation_steps, changed.config.evaluation.num_steps) == (6, None)


def test_what_was_trained_on_is_marked(trained: Path, tmp_path: Path):
    tuned, base = make_request(str(trained), [], metrics=["copy_paste"]), make_request(str(trained), [], base=True)
    assert tuned.trained_on() == ["dino", "clip_t"]
    assert base.trained_on() == []
    names = ["dino", "clip_t", "oracle_identity", "oracle_prompt", "joint_success", "copy_paste"]
    assert list(tuned.all_metrics()) == names
    other_view = make_request(str(trained), ["rewards.identity.against=other_view"], metrics=["dino"])
    assert list(other_view.all_metrics()) == ["dino against=other_view", "clip_t", *names[2:5], "dino"]
    assert other_view.trained_on() == ["clip_t", "dino"]  # what the adapter's run was rewarded for, not the override
    elsewhere = shutil.copytree(trained / "adapter", tmp_path / "adapter")  # nothing tells what it was trained on
    assert make_request(TINY, [], adapter=elsewhere).trained_on() == ["dino", "clip_t"]


def test_where_and_how_fast_a_reward_runs_changes_no_score(trained: Path):
    """Neither what the adapter was trained on, nor whether an evaluation can go on in its folder."""
    plain = make_request(str(trained), [], cases=2)
    for override in ("rewards.identity.batch=8", "rewards.prompt.device=cpu"):
        moved = make_request(str(trained), [override], cases=2)
        assert moved.trained_on() == plain.trained_on()
        assert moved.settings == plain.settings
    other = make_request(str(trained), ["rewards.identity.model=critters-dye"], cases=2)
    assert other.trained_on() == ["clip_t"]
    assert other.settings["metrics"]["dino"] == "dino model=critters-dye"


def test_a_reward_in_two_roles_is_one_metric_that_was_trained_on(trained: Path):
    """The prompt reward once more as quality: it is listed, and marked, once."""
    twice = make_request(str(trained), ["rewards.taste={name: clip_t, role: quality, weight: 0.2}"])
    assert list(twice.all_metrics())[:3] == ["dino", "clip_t", "oracle_identity"]
    assert twice.trained_on() == ["dino", "clip_t"]


def test_an_evaluation_on_training_data_warns(write_list: Callable[..., Path], tmp_path: Path):
    """A recipe's list is evaluated whole, so an adapter that was trained on it has seen a part."""
    listed = write_list()
    settings = ["updates=1", "evaluation.every=0", f"data.source={listed}", f"output={tmp_path / 'run'}", "device=cpu"]
    assemble(load_config(TINY, settings)).train()
    own = tmp_path / "run" / "adapter" / OWN_SAMPLES
    for known in (r"trained on 6 of these 8 samples; .*customized-grpo evaluate RUN", "trained on samples of this"):
        with pytest.warns(UserWarning, match=known):
            make_request(TINY, [f"data.source={listed}"], adapter=tmp_path / "run")
        own.unlink(missing_ok=True)  # as an older version left it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_request(str(tmp_path / "run"), [])
        make_request(TINY, [f"data.source={listed}"], adapter=tmp_path / "run", base=True)
        make_request(TINY, [], adapter=tmp_path / "run")


def test_a_recipe_wins_over_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "critters").mkdir()
    assert make_request("critters", []).adapter is None


def test_a_metric_takes_the_encoder_of_the_reward_of_its_kind(trained: Path):
    request = make_request(str(trained), ["rewards.identity.model=a/b"], metrics=["copy_paste", "dino model=c/d"])
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
            "metric 'dino': against: input should be 'reference' or 'other_view'",
        ),
        ("dyno", "metric 'dyno': name: no reward is named 'dyno'; did you mean 'dino'?"),
        ("dino modle=x", "metric 'dino': modle: unknown key; did you mean 'model'?"),
    ],
)
def test_an_unknown_metric_is_refused_in_one_line(text: str, problem: str):
    with pytest.raises(ConfigError) as error:
        parse_metric(text)
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value)


def test_a_folder_without_adapter_is_named(trained: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(ModelError, match=r"no adapter in .*name the folder that holds it"):
        make_request(str(tmp_path), [])
    assert make_request(str(tmp_path), [], base=True).adapter is None
    (tmp_path / "checkpoints" / "step-00020").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"is not finished; name a checkpoint, .*step-00020"):
        make_request(str(tmp_path), [])


def test_an_evaluation_goes_into_its_run_and_not_into_a_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`keep_last` removes checkpoints. A folder named "checkpoints" that does not belong to a run is left alone."""
    checkpoint, other = trained / "checkpoints" / "step-00001", tmp_path / "checkpoints" / "mine"
    shutil.copytree(trained / "adapter", other)
    expected = {
        str(trained): trained / "evaluation-tuned",
        str(trained / "adapter"): trained / "adapter" / "evaluation-tuned",
        str(checkpoint): trained / "evaluation-step-00001",
        str(other): other / "evaluation-tuned",
    }
    assert {target: default_output(make_request(target, []), target) for target in expected} == expected
    assert default_output(make_request(str(checkpoint), [], base=True), str(checkpoint)) == trained / "evaluation-base"
    assert default_output(make_request(TINY, []), TINY) == Path("evaluations/evaluation-base")
    for where, target in ((checkpoint, "."), (trained, "checkpoints/step-00001")):
        monkeypatch.chdir(where)
        assert default_output(make_request(target, []), target).absolute() == trained / "evaluation-step-00001"


def test_a_metric_named_twice_is_one(trained: Path):
    request = EvaluationRequest(
        load_config(str(trained)), metrics=(parse_metric("copy_paste"), parse_metric("copy_paste"))
    )
    assert list(request.all_metrics()).count("copy_paste") == 1


def test_weights_that_cannot_be_read_are_one_line(tmp_path: Path):
    (tmp_path / "broken.safetensors").mkdir()
    request = EvaluationRequest(load_config(TINY), tmp_path, cases=1)
    with pytest.raises(UsageError, match=r"broken\.safetensors cannot be read: Is a directory; check its permissions"):
        _ = request.settings


def test_the_settings_tell_adapters_apart_by_what_acts(trained: Path, tmp_path: Path):
    """A file's name does not act; its numbers do, and so does the alpha beside it."""
    source, own = trained / "adapter", tmp_path / "my_dog.safetensors"
    shutil.copyfile(source / "pytorch_lora_weights.safetensors", own)
    usual = make_request("critters", [], adapter=source).settings["adapter"]
    assert make_request("critters", [], adapter=own).settings["adapter"] == usual
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    assert make_request("critters", [], adapter=tmp_path).settings["adapter"] != usual
