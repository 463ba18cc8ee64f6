"""A folder per run, what a run leaves in it, and resuming: a resumed run equals an uninterrupted one."""

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
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import checkpoints_of
from customized_grpo.files.pictures import Shown
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.run.access import RunDirectoryError
from customized_grpo.run.cases import keep_cases
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.logs import read_log
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from program import TINY
from runs import SMALL, rows_of

MakeTrainer = Callable[..., Trainer]


def optimizer_of(trainer: Trainer) -> list[Tensor]:
    """All moments of AdamW."""
    states = trainer.learner.optimizer.state_dict()["state"].values()
    return [value for state in states for value in state.values()]


# --- a folder per run ------------------------------------------------------------------------------------------------


def test_a_new_run_does_not_start_in_the_folder_of_another(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer(*SMALL)
    config = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(RunDirectoryError, match=r"exists; continue that run with --resume, or .* output=\.\.\."):
        make_trainer(*SMALL, "seed=1")
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_a_folder_with_any_files_is_left_alone(make_trainer: MakeTrainer, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="exists"):
        make_trainer(*SMALL)
    (tmp_path / "run" / "thesis.tex").unlink()
    make_trainer(*SMALL)  # an empty folder is fine


def test_resuming_needs_a_run(make_trainer: MakeTrainer, tmp_path: Path):
    with pytest.raises(RunDirectoryError, match=r"nothing to resume: .* holds no run; leave out --resume"):
        make_trainer(resume=True)
    assert not (tmp_path / "run").exists()


def test_what_a_run_leaves(make_trainer: MakeTrainer, make_config: Callable[..., RunConfig], tmp_path: Path):
    settings = (*SMALL, "updates=3", "save_every=2", "evaluation.every=3", "sampling.shift=checkpoint")
    make_trainer(*settings).train()
    run = tmp_path / "run"
    assert sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()) == [
        "adapter/README.md",
        "adapter/config.yaml",
        *(f"adapter/pictures/{name}.png" for name in ("00", "01", "held-out")),
        "adapter/pytorch_lora_weights.safetensors",
        "adapter/sampling.json",
        *(
            f"checkpoints/step-0000{step}/{file}"
            for step in (2, 3)  # every second update, and the last one
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
            for file in (".png", "/00.png", "/01.png", "/cases.json")
        ),
        "images/reference-00.png",
        "images/reference-01.png",
        "metrics.jsonl",
        "run.lock",
    ]
    assert load_config(str(run / "config.yaml")) == make_config(*settings)
    assert [row["update"] for row in rows_of(run)] == [1, 2, 3]
    assert SamplingSettings.read(run / "adapter") == SamplingSettings(3, "checkpoint", 2.5, 32, 32, 16)
    assert SamplingSettings.read(run) is None  # an adapter of another program has no such file
    assert Image.open(run / "images" / "eval-00003.png").size > (
        2 * 2 * 128,
        128,
    )  # two cases, with references
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_cases_are_saved_one_by_one_with_their_scores(make_trainer: MakeTrainer, tmp_path: Path):
    trainer = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=2", "data.held_out_samples=3")
    trainer.train()
    images = tmp_path / "run" / "images"
    assert len(list(images.glob("reference-*.png"))) == 2  # the two evaluations share them
    for update, evaluation in enumerate(rows_of(tmp_path / "run", "evaluations.jsonl")):
        cases = json.loads((images / f"eval-{update:05d}" / "cases.json").read_text())
        for case, sample in zip(cases, trainer.held_out.samples, strict=False):
            assert (case["sample"], case["prompt"]) == (sample.id, sample.prompt)
            assert case["scores"].keys() == evaluation["spread"].keys()
            reference = Image.open(images / case["reference"])
            assert reference.tobytes() == sample.reference_images()[0].tobytes()
            assert Image.open(images / case["picture"]).size == (32, 32)
        assert len(cases) == 2
        assert evaluation["scored"]["oracle_prompt"] == 3


def test_missing_scores_are_null_and_large_references_are_saved_smaller(tmp_path: Path):
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


def test_figures_that_do_not_exist_are_null_in_the_logs(make_config: Callable[..., RunConfig], tmp_path: Path):
    directory = RunDirectory(make_config(), resume=False)
    directory.log({"update": 1, "reward": math.nan, "norm": math.inf, "steps": [{"scale": math.nan, "step": 0}]})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text) == {"update": 1, "reward": None, "norm": None, "steps": [{"scale": None, "step": 0}]}
    assert "NaN" not in text  # Python would read it, but it is not JSON
    assert "Infinity" not in text


# --- resuming --------------------------------------------------------------------------------------------------------

LONG = (*SMALL, "save_every=2", "evaluation.every=2", "objective.updates_per_rollout=2", "optimizer.warmup=3")


def assert_same_run(one: Trainer, other: Trainer, adapter_of: Callable[[Policy], Tensor]):
    """Bit for bit: adapter, optimiser, metrics, evaluations."""
    assert torch.equal(adapter_of(one.policy), adapter_of(other.policy))
    assert len(optimizer_of(one)) == len(optimizer_of(other)) > 0
    assert all(torch.equal(a, b) for a, b in zip(optimizer_of(one), optimizer_of(other), strict=True))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows_of(one.directory.path, name) == rows_of(other.directory.path, name)
    for name in ("images/eval-00004.png", "images/eval-00004/cases.json", "adapter/sampling.json"):
        assert (one.directory.path / name).read_bytes() == (other.directory.path / name).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of four updates."""
    trainer = assemble(load_config(TINY, [*LONG, "updates=4", f"output={tmp_path_factory.mktemp('whole') / 'run'}"]))
    trainer.train()
    return trainer


def test_two_runs_of_two_updates_equal_one_of_four(
    uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]
):
    make_trainer(*LONG, "updates=2").train()
    torch.manual_seed(99)  # another process has another state
    resumed = make_trainer(*LONG, "updates=4", resume=True)
    resumed.train()
    assert_same_run(resumed, uninterrupted, adapter_of)
    assert [row["update"] for row in rows_of(resumed.directory.path)] == [1, 2, 3, 4]


def test_a_run_that_died_resumes_from_its_last_checkpoint(
    uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    """It dies in update 4, with update 3 logged, half a line written and half a checkpoint saved."""
    dying = make_trainer(*LONG, "updates=4")
    dying.rewards["prompt"] = _dies_at(4, dying.rewards["prompt"])
    with pytest.raises(KeyboardInterrupt):
        dying.train()
    run = tmp_path / "run"
    assert [row["update"] for row in rows_of(run)] == [1, 2, 3]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "rew')
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"update": 4, "prompt_reward": 0.0}\n')  # evaluated, but not saved
    (run / "checkpoints" / "step-00004.saving").mkdir()
    (run / "checkpoints" / "step-00004.saving" / "state.json").write_bytes(b"half")
    (run / "config.yaml.saving").write_bytes(b"half")
    resumed = make_trainer(*LONG, "updates=4", resume=True)
    resumed.train()
    assert_same_run(resumed, uninterrupted, adapter_of)
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
    uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]
):
    settings = (*LONG, "updates=4", "save_every=9")
    dying = make_trainer(*settings)
    dying.rewards["prompt"] = _dies_at(2, dying.rewards["prompt"])
    with pytest.raises(KeyboardInterrupt):
        dying.train()
    resumed = make_trainer(*settings, resume=True)
    resumed.train()
    assert_same_run(resumed, uninterrupted, adapter_of)


def test_a_reward_that_draws_from_torch_draws_the_same_after_resuming(make_trainer: MakeTrainer, tmp_path: Path):
    """The random state follows from the run's seed or is restored from the checkpoint."""

    def noisy(images: Tensor, samples: Any) -> Tensor:  # noqa: ARG001
        return torch.rand(len(images))

    for name, lengths in (("whole", [2]), ("parts", [1, 2])):
        for updates in lengths:
            torch.seed()  # as at the start of a process
            resume = updates != lengths[0]
            trainer = make_trainer(*SMALL, f"updates={updates}", f"output={tmp_path / name}", resume=resume)
            trainer.rewards["prompt"] = noisy
            trainer.train()
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]):
    trainer = make_trainer(*SMALL, "updates=2")
    trainer.train()
    before = rows_of(trainer.directory.path)
    again = make_trainer(*SMALL, "updates=2", resume=True)
    again.train()
    assert torch.equal(adapter_of(again.policy), adapter_of(trainer.policy))
    assert rows_of(again.directory.path) == before


def test_checkpoints_are_listed_in_the_order_of_their_updates(make_trainer: MakeTrainer):
    run = make_trainer(*SMALL).directory.path
    for update in (20, 3, 100_000, 99_999):
        (run / "checkpoints" / f"step-{update:05d}").mkdir()
    names = [path.name for path in checkpoints_of(run)]
    assert names == ["step-00003", "step-00020", "step-99999", "step-100000"]


def test_a_row_that_is_still_being_written_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"update": 2, "rew')
    assert read_log(tmp_path / "metrics.jsonl") == [{"update": 1}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"update" 2}\n', "not JSON: Expecting ':' delimiter"),
        (b'{"update": "\xff"}\n', "not text in UTF-8"),
        (b"[" * 100_000 + b"\n", "not JSON: brackets are nested too deeply"),
        (b"[]\n", 'not a row: a row is a JSON object with a number "update"'),
        (b'{"update": "2"}\n', 'not a row: a row is a JSON object with a number "update"'),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_damaged_line_of_a_log_is_named(line: bytes, problem: str, tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"update": 1}\n' + line)
    with pytest.raises(UsageError) as refused:
        read_log(log)
    assert str(refused.value) == f"{log}, line 2: {problem}; restore it, or remove the line"


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    for name in ("metrics.jsonl", "sampling.json"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        read_log(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match=r"sampling\.json cannot be read: Is a directory"):
        SamplingSettings.read(tmp_path)
