"""The studio's pictures are those of `generate`, and its scores those of the run's evaluations."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.commands.generate import GenerationRequest, write_pictures
from customized_grpo.config import load_config
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.policies.base import Policy
from customized_grpo.studio.generating import CheckpointGoneError, Studio, told
from customized_grpo.studio.opened import Opened, open_folders
from customized_grpo.studio.page import Page
from customized_grpo.studio.subjects import choices, uploaded, with_prompt
from customized_grpo.training.assemble import load_metrics, load_rewards
from customized_grpo.training.trainer import Trainer
from runs import SMALL

PROMPT = "a critter on the beach, at the left, wearing a red hat"


@pytest.fixture
def opened(make_trainer: Callable[..., Trainer], excite: Callable[[Policy], None]) -> Opened:
    """A run with checkpoints after updates 1 and 2 that change the pictures."""
    trainer = make_trainer(
        *SMALL, "updates=2", "save_every=1", "keep_last=9", "optimizer.lr=0.05", "evaluation.every=2"
    )
    excite(trainer.policy)
    trainer.train()
    return open_folders([trainer.directory.path])[0][0]


def test_the_same_seed_gives_the_pictures_of_generate(opened: Opened, samples: list[Sample], tmp_path: Path):
    reference = tmp_path / "reference.png"
    samples[0].reference_images()[0].save(reference)
    rows = {}
    for name, adapter in opened.checkpoints().items():
        request = GenerationRequest(
            references=[reference], prompts=[PROMPT], seeds=[7], model=None, adapter=adapter, device="cpu"
        )
        tuned, row = write_pictures(request, tmp_path / name, compare=True)
        rows[name] = np.asarray(Image.open(tuned)), np.asarray(Image.open(row))
    studio = Studio("cpu")
    trial = studio.begin(opened, with_prompt(uploaded([reference], None), PROMPT), 7)
    for name, (picture, row) in rows.items():  # the last one first, then another, in the same model
        studio.tune(trial, name)
        assert np.array_equal(np.asarray(trial.tuned[name].picture), picture)
        # The base stands in the middle, enlarged eightfold: see test_generate.py.
        assert np.array_equal(np.asarray(trial.base.picture), row[18 : 18 + 256, 262 : 262 + 256][4::8, 4::8])
    pictures = [made.picture.tobytes() for made in (trial.base, *trial.tuned.values())]
    assert len(set(pictures)) == 3


def test_frames_end_with_the_picture_and_begin_far_from_it(opened: Opened):
    trial = Studio("cpu").begin(opened, choices(opened)[0], 0)
    assert len(trial.base.frames) == opened.config.evaluation_steps == 3
    assert len({frame.tobytes() for frame in trial.base.frames}) == 3
    distances = [
        np.abs(np.asarray(f, float) - np.asarray(trial.base.picture, float)).mean() for f in trial.base.frames
    ]
    assert distances[0] > distances[1] > distances[2] == 0


def test_scores_are_those_of_an_evaluation(opened: Opened):
    sample = choices(opened)[0]
    trial = Studio("cpu").begin(opened, sample, 0)
    metrics = load_metrics(opened.config, load_rewards(opened.config))
    image = torch.from_numpy(np.array(trial.base.picture)).permute(2, 0, 1)[None] / 255
    assert list(trial.base.scores) == list(metrics)
    for name, metric in metrics.items():
        assert trial.base.scores[name] == pytest.approx(metric(image, [sample]).item(), abs=0.01)
    assert trial.trained_on == {"identity_reward", "prompt_reward"}
    assert trial.notes == ()


def test_a_case_without_a_seed_is_that_of_the_evaluations(opened: Opened):
    page, sample = Page({opened.name: opened}, "", Studio("cpu")), choices(opened)[0]
    trial, result, *_ = page.generate(opened.name, sample, sample.prompt, " ")
    shown = page.live(opened)
    assert shown is not None
    assert shown[0].film is not None
    (kept,) = shown[0].film.frames[-1][0].pictures
    assert kept is not None
    difference = np.asarray(Image.open(kept.file), int) - np.asarray(trial.tuned["update 2"].picture, int)
    assert np.abs(difference).max() <= 1  # evaluations generate several at a time, which changes the last bits
    assert f"seed {trial.seed}<" in result
    assert page.generate(opened.name, sample, sample.prompt, " 5 ")[0].seed == 5
    for wrong in ("-1", "1.5", "x", str(2**63)):
        *_, problem = page.generate(opened.name, sample, sample.prompt, wrong)
        assert "is not a whole number from 0 to 9223372036854775807; leave it empty or change it" in problem


def test_missing_scores_have_a_reason(opened: Opened, samples: list[Sample], tmp_path: Path):
    samples[0].reference_images()[0].save(tmp_path / "mine.png")
    run = opened.config.model_copy(
        update={"rewards": load_config("critters", ["rewards.identity=dino against=other_view"]).rewards}
    )
    trial = Studio("cpu").begin(
        Opened("other", run, opened.folder, opened.run),
        with_prompt(uploaded([tmp_path / "mine.png"], None), PROMPT),
        0,
    )
    assert np.isnan(trial.base.scores["identity_reward"])
    assert set(trial.notes) == {
        "dino needs the other view of the subject, which this subject does not have",
        "The oracle judges only subjects and prompts of the built-in world.",
    }


def test_a_run_without_a_checkpoint_and_the_built_in_model_show_their_base(
    make_trainer: Callable[..., Trainer],
):
    trainer = make_trainer(*SMALL)
    trainer.directory.close()
    (fresh,), _ = open_folders([trainer.directory.path])
    built_in = Opened("built-in model", load_config("critters", []))
    studio = Studio("cpu")
    for opened, steps in ((fresh, 3), (built_in, 10)):
        trial = studio.begin(opened, choices(fresh)[0], 0)
        assert (len(trial.base.frames), trial.tuned) == (steps, {})


def test_a_checkpoint_that_the_run_has_removed_is_said_so(opened: Opened):
    trial = (studio := Studio("cpu")).begin(opened, choices(opened)[0], 0)
    with pytest.raises(CheckpointGoneError, match="update 9 has been removed"):
        studio.tune(trial, "update 9")


def test_a_checkpoint_that_the_run_removes_meanwhile_still_gives_its_picture(opened: Opened):
    studio, removed = Studio("cpu"), opened.checkpoints()["update 2"]
    load = studio._load

    def load_and_remove(opened: Opened, adapter: Path | None):
        generator = load(opened, adapter)
        shutil.rmtree(removed)
        return generator

    studio._load = load_and_remove
    assert list(studio.begin(opened, choices(opened)[0], 0).tuned) == ["update 2"]


def test_an_adapter_that_was_written_anew_is_read_anew(opened: Opened):
    studio, (first, last) = Studio("cpu"), opened.checkpoints().values()
    before = studio.begin(opened, choices(opened)[0], 0)
    shutil.rmtree(last)
    shutil.copytree(first, last, copy_function=shutil.copyfile)
    after = studio.begin(opened, choices(opened)[0], 0)
    studio.tune(after, "update 1")
    pictures = {name: made.picture.tobytes() for name, made in after.tuned.items()}
    assert pictures["update 2"] == pictures["update 1"] != before.tuned["update 2"].picture.tobytes()


def test_failures_are_one_line_and_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]):
    assert told(UsageError("no reference")) == "no reference"
    assert told(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith("out of memory (Default")
    assert capsys.readouterr().err == ""
    assert told(KeyError("latents")) == "a bug: KeyError: 'latents' (the traceback is where the studio was started)"
    assert "KeyError: 'latents'" in capsys.readouterr().err
