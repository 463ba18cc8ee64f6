import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import RunConfig, load_config
from customized_grpo.files.pictures import Shown
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.run.access import RunDirectoryError
from customized_grpo.run.cases import keep_cases
from customized_grpo.run.checkpoints import checkpoints_of
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.logs import read_log
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a log without what a clock says."""
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def optimizer_of(trainer: Trainer) -> list[Tensor]:
    """All moments of AdamW."""
    states = trainer.optimizer.state_dict()["state"].values()
    return [value for state in states for value in state.values()]


# --- a folder per run ------------------------------------------------------------------------------------------------


def test_an_existing_run_is_an_error_that_names_both_ways_out(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer()
    config = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RunDirectoryError, match=r"exists; continue that run with --resume, or .* output=\.\.\."):
        make_trainer("seed=1")
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_any_folder_with_files_in_it_is_left_alone(make_trainer: MakeTrainer, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="exists"):
        make_trainer()
    (tmp_path / "run" / "thesis.tex").unlink()
    make_trainer()  # an empty folder will do


def test_there_must_be_something_to_resume(make_trainer: MakeTrainer, tmp_path: Path):
    with pytest.raises(RunDirectoryError, match=r"nothing to resume: .* holds no run; leave out --resume"):
        make_trainer(resume=True)
    assert not (tmp_path / "run").exists()


def test_what_a_run_leaves(make_trainer: MakeTrainer, make_config: Callable[..., RunConfig], tmp_path: Path):
    settings = ("updates=3", "save_every=2", "evaluation.every=3", "sampling.shift=checkpoint")
    make_trainer(*settings).train()
    run = tmp_path / "run"
    assert sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()) == [
        "adapter/config.yaml",
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/sampling.json",
        *(
            f"checkpoints/step-0000{step}/{file}"
            for step in (2, 3)  # every second one, and the last
            for file in (
                "config.yaml",
                *(() if step == 2 else ("interim",)),
                "manifest.json",
                "optimizer.safetensors",
                "pytorch_lora_weights.safetensors",
                "sampling.json",
                "state.json",
            )
        ),
        "config.yaml",
        "environment.json",
        "evaluations.jsonl",
        *(
            f"images/eval-0000{update}{file}"
            for update in (0, 3)
            for file in (".png", "/00.png", "/01.png", "/02.png", "/03.png", "/cases.json")
        ),
        *(f"images/reference-0{case}.png" for case in range(4)),
        "metrics.jsonl",
        "run.lock",
    ]
    assert load_config(str(run / "config.yaml")) == make_config(*settings)
    assert [row["update"] for row in rows(run)] == [1, 2, 3]
    read = SamplingSettings.read(run / "adapter")
    assert read == SamplingSettings(4, "checkpoint", 2.5, 32, 32, 16)
    assert SamplingSettings.read(run) is None  # an adapter from elsewhere has no settings beside it
    assert Image.open(run / "images" / "eval-00003.png").size > (4 * 128, 128)  # four held-out cases in a row
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_cases_are_kept_one_by_one_with_what_was_said_of_them(make_trainer: MakeTrainer, tmp_path: Path):
    trainer = make_trainer("evaluation.every=1", "evaluation.grid=2")
    trainer.train()
    images = tmp_path / "run" / "images"
    assert len(list(images.glob("reference-*.png"))) == 2  # once for both evaluations
    for update, evaluation in enumerate(rows(tmp_path / "run", "evaluations.jsonl")):
        cases = json.loads((images / f"eval-{update:05d}" / "cases.json").read_text())
        for case, sample in zip(cases, trainer.held_out.samples, strict=False):
            assert (case["sample"], case["prompt"]) == (sample.id, sample.prompt)
            assert case["scores"].keys() == evaluation["spread"].keys()
            reference = Image.open(images / case["reference"])
            assert reference.tobytes() == sample.reference_images()[0].tobytes()
            assert Image.open(images / case["picture"]).size == (32, 32)
        assert len(cases) == 2
        assert evaluation["scored"]["oracle_prompt"] == 4


def test_what_could_not_be_scored_is_null_and_a_large_reference_is_kept_small(tmp_path: Path):
    photograph = Image.new("RGB", (3000, 2000), "red")
    shown = Shown("a/b", "dog", "a <dog>", photograph, Image.new("RGB", (8, 8)), {"dino": math.nan, "clip_t": 0.5})
    keep_cases(tmp_path, "tuned", [shown])
    assert json.loads((tmp_path / "tuned" / "cases.json").read_text()) == [
        {
            **{"sample": "a/b", "subject": "dog", "prompt": "a <dog>"},
            **{"reference": "reference-00.png", "picture": "tuned/00.png"},
            "scores": {"dino": None, "clip_t": 0.5},
        }
    ]
    assert Image.open(tmp_path / "reference-00.png").size == (512, 341)
    assert photograph.size == (3000, 2000)


def test_logs_are_json_where_a_figure_does_not_exist(make_config: Callable[..., RunConfig], tmp_path: Path):
    directory = RunDirectory(make_config(), resume=False)
    directory.log({"update": 1, "reward": math.nan, "norm": math.inf, "steps": [{"scale": math.nan, "step": 0}]})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text) == {"update": 1, "reward": None, "norm": None, "steps": [{"scale": None, "step": 0}]}
    assert "NaN" not in text  # Python reads it, JSON does not know it
    assert "Infinity" not in text


# --- resuming --------------------------------------------------------------------------------------------------------

LONG = ("save_every=2", "evaluation.every=2", "objective.updates_per_rollout=2", "optimizer.warmup=3")


def assert_same_run(one: Trainer, other: Trainer, adapter_of: Callable[[Policy], Tensor]):
    """Bit for bit: adapter, optimiser, metrics, evaluations."""
    assert torch.equal(adapter_of(one.policy), adapter_of(other.policy))
    assert len(optimizer_of(one)) == len(optimizer_of(other)) > 0
    assert all(torch.equal(a, b) for a, b in zip(optimizer_of(one), optimizer_of(other), strict=True))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows(one.directory.path, name) == rows(other.directory.path, name)
    for name in ("images/eval-00004.png", "images/eval-00004/cases.json", "adapter/sampling.json"):
        assert (one.directory.path / name).read_bytes() == (other.directory.path / name).read_bytes()


@pytest.fixture
def whole(make_trainer: MakeTrainer, tmp_path: Path) -> Trainer:
    """Four updates in one go."""
    trainer = make_trainer(*LONG, "updates=4", f"output={tmp_path / 'whole'}")
    trainer.train()
    return trainer


def test_two_runs_of_two_updates_are_one_of_four(
    whole: Trainer, make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]
):
    make_trainer(*LONG, "updates=2").train()
    torch.manual_seed(99)  # another process, another state
    resumed = make_trainer(*LONG, "updates=4", resume=True)
    resumed.train()
    assert_same_run(resumed, whole, adapter_of)
    assert [row["update"] for row in rows(resumed.directory.path)] == [1, 2, 3, 4]


def test_a_run_that_died_goes_on_from_its_last_checkpoint(
    whole: Trainer, make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    """It dies in update 4, with update 3 logged, a line half written and a checkpoint half saved."""
    dying = make_trainer(*LONG, "updates=4")
    dying.rewards["prompt"] = _dies_at(4, dying.rewards["prompt"])
    with pytest.raises(KeyboardInterrupt):
        dying.train()
    run = tmp_path / "run"
    assert [row["update"] for row in rows(run)] == [1, 2, 3]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "rew')
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"update": 4, "prompt_reward": 0.0}\n')  # evaluated, but not saved any more
    (run / "checkpoints" / "step-00004.saving").mkdir()
    (run / "checkpoints" / "step-00004.saving" / "state.json").write_bytes(b"half")
    (run / "config.yaml.saving").write_bytes(b"half")
    resumed = make_trainer(*LONG, "updates=4", resume=True)
    resumed.train()
    assert_same_run(resumed, whole, adapter_of)
    assert not list(run.rglob("*.saving"))


def _dies_at(update: int, reward: Reward) -> Reward:
    calls = []

    def score(images: Tensor, samples: Any) -> Tensor:
        calls.append(len(images))
        if len(calls) == update:
            raise KeyboardInterrupt
        return reward(images, samples)

    return score


def test_a_run_that_died_before_its_first_checkpoint_starts_over(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    settings = ("updates=2", "save_every=9", "evaluation.every=1")
    dying = make_trainer(*settings)
    dying.rewards["prompt"] = _dies_at(2, dying.rewards["prompt"])
    with pytest.raises(KeyboardInterrupt):
        dying.train()
    resumed = make_trainer(*settings, resume=True)
    resumed.train()
    whole = make_trainer(*settings, f"output={tmp_path / 'whole'}")
    whole.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows(tmp_path / "run", name) == rows(tmp_path / "whole", name)


def test_a_reward_that_draws_from_torch_draws_the_same_in_every_process(make_trainer: MakeTrainer, tmp_path: Path):
    """Its random state follows from the run's seed, or comes with the checkpoint."""

    def noisy(images: Tensor, samples: Any) -> Tensor:  # noqa: ARG001
        return torch.rand(len(images))

    for name, lengths in (("whole", [2]), ("parts", [1, 2])):
        for updates in lengths:
            torch.seed()  # as at the start of a process
            resume = updates != lengths[0]
            trainer = make_trainer(f"updates={updates}", f"output={tmp_path / name}", resume=resume)
            trainer.rewards["prompt"] = noisy
            trainer.train()
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]):
    trainer = make_trainer("updates=2")
    trainer.train()
    before = rows(trainer.directory.path)
    again = make_trainer("updates=2", resume=True)
    again.train()
    assert torch.equal(adapter_of(again.policy), adapter_of(trainer.policy))
    assert rows(again.directory.path) == before


def test_checkpoints_are_found_in_the_order_of_their_updates(make_trainer: MakeTrainer):
    run = make_trainer().directory.path
    for update in (20, 3, 100_000, 99_999):
        (run / "checkpoints" / f"step-{update:05d}").mkdir()
    names = [path.name for path in checkpoints_of(run)]
    assert names == ["step-00003", "step-00020", "step-99999", "step-100000"]


def test_a_row_that_is_just_being_written_is_no_row_yet(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2, "rew')
    assert read_log(tmp_path / "metrics.jsonl") == [{"update": 1}]
