"""Runs that measure what their rewards give to bad and to good pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.calibration.file import CalibrationError, RewardCalibration, read_calibration
from customized_grpo.calibration.joint import joint_quality
from customized_grpo.calibration.levels import BASE_LOWER, BASE_UPPER, OTHER_VIEW, REFERENCE, STRANGER
from customized_grpo.config import RunConfig
from customized_grpo.training import calibrate
from customized_grpo.training.advice import notices
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from processes import in_processes
from runs import SMALL, rows_of

MakeConfig = Callable[..., RunConfig]
MakeTrainer = Callable[..., Trainer]
Photographs = Callable[..., tuple[str, ...]]
JOINT = (*SMALL, "shaping.rule=joint")
# Rewards of a user: whether the prompt names the sample's subject, and two that are of no use.
REWARDS = """
import torch
def named(images, samples):
    right = torch.tensor([float(sample.subject in sample.prompt) for sample in samples])
    return right + images.mean(dim=(1, 2, 3)) / 9
def constant(images, samples):
    return torch.ones(len(images))
def unable(images, samples):
    return torch.full((len(images),), torch.nan)
"""


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of the pictures: enough for intervals that do not overlap."""
    monkeypatch.setattr(calibrate, "CASES", 12)


@pytest.fixture
def photographs(tmp_path: Path) -> Photographs:
    """Settings for a list of plain pictures with noise, a colour and a prompt per subject, and for rewards on it."""
    (tmp_path / "mine.py").write_text(REWARDS)

    def make(subjects: int = 4, views: int = 1, reward: str = "named", prompt: str = "{} in the snow"):
        rng, entries = np.random.default_rng(0), []
        for number in range(subjects):
            colour = rng.integers(0, 256, 3)
            names = [f"s{number}-{view}.png" for view in range(1 + views)]
            for name in names:
                pixels = np.clip(colour + rng.integers(-40, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / name)
            pictures = {"image_paths": names[:1], "other_views": names[1:], "subject": f"s{number}"}
            entries.append(pictures | {"prompt": prompt.format(f"s{number}")})
        (tmp_path / "list.json").write_text(json.dumps(entries))
        settings = (f"data.source={tmp_path / 'list.json'}", "data.held_out_share=0", "data.train_samples=null")
        return (*JOINT, *settings, f"rewards.prompt.name={tmp_path / 'mine.py'}:{reward}")

    return make


def kept(trainer: Trainer) -> dict[str, RewardCalibration]:
    return read_calibration(trainer.directory.path / "calibration.yaml")


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("calibration of ")]


# --- measuring -------------------------------------------------------------------------------------------------------


def test_a_run_of_critters_measures_its_rewards(make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]):
    """The built-in world's levels, on 512 cases: identity .022 and .776, prompt -.015 and .994."""
    trainer = make_trainer(*JOINT)
    found = kept(trainer)
    assert found["identity"].bad.mean == pytest.approx(0.022, abs=0.15)
    assert found["identity"].good.mean == pytest.approx(0.776, abs=0.05)
    assert found["prompt"].bad.mean == pytest.approx(-0.015, abs=0.15)
    assert found["prompt"].good.mean == pytest.approx(0.994, abs=0.01)
    assert {each.pictures for of in found.values() for each in (of.bad, of.good)} == {12}
    assert (found["identity"].capped, found["prompt"].capped) == (True, False)
    assert trainer.calibrations == {key: each.scale() for key, each in found.items()}
    lines = told(capsys)
    assert [line.split()[2] for line in lines] == ["rewards.identity:", "rewards.prompt:"]
    assert f"good {found['identity'].good.mean:.3g} [" in lines[0]


def test_a_run_that_needs_no_calibration_measures_none(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "judge", lambda *_: pytest.fail("it measured"))
    trainer = make_trainer(*SMALL, "evaluation.every=1")
    trainer.train()
    assert not list(trainer.directory.path.rglob("calibration.yaml"))
    assert "joint_calibrated" not in rows_of(trainer.directory.path, "evaluations.jsonl")[0]


def test_photographs_are_measured_on_the_base_where_they_do_not_tell(
    make_trainer: MakeTrainer, photographs: Photographs, capsys: pytest.CaptureFixture[str]
):
    """`named` gives 1 for the right prompt and 0 for a wrong one, and at most 1/9 for a bright picture."""
    trainer = make_trainer(*photographs())
    found, lines = kept(trainer), told(capsys)
    identity, prompt = found["identity"], found["prompt"]
    assert (identity.bad.what, identity.good.what) == ("other subjects", "other views")
    assert (identity.bad.pictures, identity.good.pictures) == (4, 4)
    assert prompt.bad.what == "the base's pictures with wrong prompts"
    assert prompt.good.what == "upper decile of the base's groups"
    assert (prompt.bad.pictures, prompt.good.pictures) == (12, 12)  # four prompts, groups.size=3
    assert 0 <= prompt.bad.mean <= 1 / 9
    assert 1 + prompt.bad.mean < prompt.good.mean <= 1 + 1 / 9  # the upper decile is above the mean
    assert len(lines) == 2
    assert "(upper decile of the base's groups, 12 pictures)" in lines[1]
    trainer.train()
    assert trainer.update == 1


def test_the_base_draws_at_most_so_many_prompts(
    make_trainer: MakeTrainer, photographs: Photographs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibrate, "PROMPTS", 2)
    assert kept(make_trainer(*photographs()))["prompt"].good.pictures == 2 * 3


@pytest.mark.parametrize(
    ("data", "key", "bad", "good"),
    [
        ({"subjects": 1}, "identity", BASE_LOWER, OTHER_VIEW),
        ({"views": 0}, "identity", STRANGER, BASE_UPPER),
        ({"subjects": 1, "views": 0}, "identity", BASE_LOWER, BASE_UPPER),
        ({"prompt": "it"}, "prompt", BASE_LOWER, BASE_UPPER),
    ],
)
def test_what_the_data_does_not_have_comes_from_the_base(
    data: dict[str, object],
    key: str,
    bad: str,
    good: str,
    make_config: MakeConfig,
    photographs: Photographs,
    capsys: pytest.CaptureFixture[str],
):
    """Whether these rewards tell them apart is another question; the line is printed before it is answered."""
    try:
        assemble(make_config(*photographs(**data)))
    except CalibrationError as error:
        assert "it cannot tell good pictures" in str(error)  # noqa: PT017 (it depends on the base's pictures)
    (line,) = (line for line in told(capsys) if f"rewards.{key}:" in line)
    assert f"({bad}, " in line.split("; good ")[0]
    assert f"({good}, " in line.split("; good ")[1]


def test_synthetic_sets_are_measured_on_their_own_pictures(
    make_trainer: MakeTrainer, photographs: Photographs, tmp_path: Path
):
    """SynCD has a picture for each prompt: the base draws nothing."""
    photographs(subjects=4, views=1)
    sets = [
        {"filenames": [f"s{n}-0.png", f"s{n}-1.png"], "prompts": [f"s{n}-0 left", f"s{n}-0 right"]} for n in range(4)
    ]
    (tmp_path / "metadata.json").write_text(json.dumps(sets))
    settings = ("data.source=syncd", f"data.root={tmp_path}", "data.held_out_share=0", "data.train_samples=null")
    trainer = make_trainer(*JOINT, *settings, f"rewards.prompt.name={tmp_path / 'mine.py'}:named")
    found = kept(trainer)["prompt"]
    assert (found.bad.what, found.good.what) == ("wrong prompts", "right prompts")
    assert (found.bad.pictures, found.good.pictures) == (8, 8)
    assert found.good.mean == pytest.approx(1, abs=1 / 9)


# --- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "constant",
            "calibration: rewards.prompt: it cannot tell good pictures (upper decile of the base's groups: 1",
        ),
        ("unable", "rewards.prompt could score no picture that it could be calibrated with: check-rewards shows what"),
    ],
)
def test_a_reward_that_cannot_tell_good_from_bad_is_refused_before_the_folder_is_made(
    reward: str, message: str, make_config: MakeConfig, photographs: Photographs
):
    config = make_config(*photographs(reward=reward))
    with pytest.raises(CalibrationError) as caught:
        assemble(config)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not Path(config.output).exists()


# --- a file ----------------------------------------------------------------------------------------------------------


def given(folder: Path, text: str) -> str:
    (folder / "given.yaml").write_text(text)
    return f"shaping.calibration={folder / 'given.yaml'}"


def test_a_given_file_is_used_and_copied(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "judge", lambda *_: pytest.fail("it measured"))
    file = given(tmp_path, "identity: {bad: 0.1, good: 0.8}\nprompt: {bad: 0, good: 1}\n")
    trainer = make_trainer(*JOINT, file)
    scales = {key: each.scale() for key, each in kept(trainer).items()}
    assert scales == trainer.calibrations
    assert (scales["identity"].good, scales["identity"].capped, scales["prompt"].capped) == (0.8, True, False)


def test_what_a_given_file_lacks_is_measured(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As check-rewards leaves it for photographs, whose prompt it cannot know."""
    trainer = make_trainer(*JOINT, given(tmp_path, "identity: {bad: 0.1, good: 0.8}\n"))
    assert kept(trainer)["identity"].good.mean == 0.8
    assert kept(trainer)["prompt"].good.pictures == 12
    assert [line.split()[2] for line in told(capsys)] == ["rewards.prompt:"]


def test_a_file_that_does_not_fit_is_refused_before_a_model_is_loaded(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("customized_grpo.training.assemble.load_policy", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(CalibrationError, match=r"given.yaml: rewards.idenity: the run has no .* did you mean"):
        assemble(make_config(*JOINT, given(tmp_path, "idenity: {bad: 0.1, good: 0.8}\n")))


def test_any_rule_can_have_the_held_out_figure(make_trainer: MakeTrainer, tmp_path: Path):
    file = given(tmp_path, "identity: {bad: 0.1, good: 0.8}\nprompt: {bad: 0, good: 1}\n")
    trainer = make_trainer(*SMALL, file, "evaluation.every=1")
    trainer.train()
    (_, row) = rows_of(trainer.directory.path, "evaluations.jsonl")
    scores = trainer.held_out.evaluate(trainer.policy, trainer.sampler.sigmas).scores
    of_rewards = {"identity": scores["identity_reward"], "prompt": scores["prompt_reward"]}
    expected = joint_quality(of_rewards, {"identity": "identity", "prompt": "prompt"}, trainer.calibrations)
    assert row["joint_calibrated"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert row["spread"]["joint_calibrated"] == pytest.approx(expected.std().item(), abs=1e-6)
    assert row["scored"]["joint_calibrated"] == 2
    assert "shaping.calibration only adds the held-out figure joint_calibrated" in "\n".join(notices(trainer.plan))


def test_the_best_adapter_can_be_chosen_by_the_figure(make_trainer: MakeTrainer):
    """With any rule; the rewards are measured for it."""
    trainer = make_trainer(*SMALL, "keep_best=joint_calibrated", "evaluation.every=1")
    trainer.train()
    values = [row["joint_calibrated"] for row in rows_of(trainer.directory.path, "evaluations.jsonl")]
    best = max(range(2), key=lambda update: values[update])
    assert (trainer.directory.path / "best" / f"step-{best:05d}" / "calibration.yaml").is_file()


def test_against_another_view_the_reference_is_good(make_trainer: MakeTrainer):
    """Critters have one other view, which is what the reward compares with."""
    trainer = make_trainer(*JOINT, "rewards.identity.against=other_view")
    assert kept(trainer)["identity"].good.what == REFERENCE
    assert kept(trainer)["identity"].good.mean == pytest.approx(0.776, abs=0.05)


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run after its first update; nothing may be measured any more."""
    trainer = make_trainer(*JOINT, "updates=1")
    trainer.train()
    monkeypatch.setattr(calibrate, "judge", lambda *_: pytest.fail("it measured"))
    return trainer.directory.path


def test_a_resumed_run_reads_its_own_file(stopped: Path, make_trainer: MakeTrainer):
    before = (stopped / "calibration.yaml").read_text()
    trainer = make_trainer(*JOINT, "updates=2", resume=True)
    assert trainer.calibrations == {key: each.scale() for key, each in kept(trainer).items()}
    trainer.train()
    assert (stopped / "calibration.yaml").read_text() == before
    for place in ("adapter", "checkpoints/step-00002"):
        assert (stopped / place / "calibration.yaml").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "is missing; restore it from"),
        (lambda file: file.write_text(file.read_text().replace("capped: true", "capped: false")), "has changed since"),
    ],
)
def test_a_missing_or_changed_file_is_one_line(
    change: Callable[[Path], object], message: str, stopped: Path, make_config: MakeConfig
):
    file, copy = stopped / "calibration.yaml", stopped / "checkpoints" / "step-00001" / "calibration.yaml"
    change(file)
    with pytest.raises(CalibrationError) as caught:
        assemble(make_config(*JOINT, "updates=2"), resume=True)
    told = str(caught.value)
    assert message in told
    assert f"restore it from {copy}, or start another run" in told
    assert "\n" not in told
    file.write_bytes(copy.read_bytes())
    assert assemble(make_config(*JOINT, "updates=2"), resume=True).calibrations


def test_a_run_without_a_checkpoint_keeps_what_it_measured(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(*JOINT)
    trainer.directory.close()
    first = kept(trainer)
    with monkeypatch.context() as unable:
        unable.setattr(calibrate, "judge", lambda *_: pytest.fail("it measured"))
        again = make_trainer(*JOINT, resume=True)
        again.directory.close()
    assert kept(again) == first
    (trainer.directory.path / "calibration.yaml").unlink()  # killed before it was written
    assert kept(make_trainer(*JOINT, resume=True)) == first


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["false", "true"])
def test_all_processes_use_what_the_first_measures(
    shard: str, make_config: MakeConfig, photographs: Photographs, tmp_path: Path
):
    """On the base's pictures, too: with sharded weights every process draws them. One process finds the same."""
    settings = (*photographs(), "groups.prompts=2")

    def run(name: str, *further: str) -> None:
        trainer = assemble(make_config(*settings, *further, f"output={tmp_path / name}"))
        values = {key: (each.bad, each.good) for key, each in trainer.calibrations.items()}
        torch.save(values, tmp_path / f"{name}-{trainer.processes.index}.pt")
        trainer.train()

    run("one")
    in_processes(2, lambda: run("two", f"model.shard={shard}"), tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    assert first == second
    assert {key: pytest.approx(levels, abs=1e-4) for key, levels in one.items()} == first


def test_all_processes_refuse(make_config: MakeConfig, photographs: Photographs, tmp_path: Path):
    config = make_config(*photographs(reward="constant"), "groups.prompts=2", f"output={tmp_path / 'run'}")

    def work() -> None:
        with pytest.raises(CalibrationError, match="cannot tell good pictures"):
            assemble(config)

    in_processes(2, work, tmp_path)
    assert not (tmp_path / "run").exists()
