"""A reward or an evaluation that fails hours into a run: what was trained is saved, and the run goes on from there."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.files.adapter_places import bests_of, checkpoints_of
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.run.checkpoints import INTERIM, find_damage
from customized_grpo.runtime.distributed import DistributedError
from customized_grpo.training.trainer import Trainer
from processes import in_processes
from runs import REMEMBERING, SMALL, rows_of

MakeTrainer = Callable[..., Trainer]
RUN = (*SMALL, *REMEMBERING, "updates=4", "save_every=3", "evaluation.every=0", "optimizer.warmup=4")


class FailsFrom:
    """A reward that works for some updates, and then raises."""

    def __init__(self, reward: Reward, update: int, error: BaseException):
        self.reward, self.left, self.error = reward, update - 1, error

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.reward(images, samples)


def fail_in(trainer: Trainer, update: int, error: BaseException) -> None:
    trainer.rewards["prompt"] = FailsFrom(trainer.rewards["prompt"], update, error)
    with pytest.raises(type(error)):
        trainer.train()


@pytest.mark.parametrize("error", [KeyError("cat"), RuntimeError("no such server"), OSError("no such file")])
def test_the_updates_before_it_are_saved_and_the_run_goes_on(
    error: Exception,
    make_trainer: MakeTrainer,
    adapter_of: Callable[[Policy], Tensor],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    whole = make_trainer(*RUN)
    whole.train()
    failed = make_trainer(*RUN, f"output={tmp_path / 'failed'}")
    fail_in(failed, 3, error)
    run = failed.directory.path
    [saved] = checkpoints_of(run)
    assert saved.name == "step-00002"
    assert find_damage(saved) is None
    assert (saved / INTERIM).exists()
    assert (
        f"note: stopped after update 2; resume with: customized-grpo train {run} --resume" in capsys.readouterr().err
    )

    resumed = make_trainer(*RUN, f"output={tmp_path / 'failed'}", resume=True)
    resumed.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    assert rows_of(run) == rows_of(whole.directory.path)
    assert [path.name for path in checkpoints_of(run)] == [path.name for path in checkpoints_of(whole.directory.path)]


@pytest.mark.parametrize("error", [KeyError("cat"), torch.OutOfMemoryError("no memory")])
def test_an_evaluation_that_fails_is_made_when_the_run_goes_on(
    error: Exception,
    make_trainer: MakeTrainer,
    adapter_of: Callable[[Policy], Tensor],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    evaluated = (*RUN, "evaluation.every=2", "evaluation.metrics=[clip_i]", "keep_best=clip_i")
    whole = make_trainer(*evaluated)
    whole.train()
    failed = make_trainer(*evaluated, f"output={tmp_path / 'failed'}")
    run = failed.directory.path
    metrics = failed.held_out.metrics
    assert isinstance(metrics, dict)
    metrics["clip_i"] = FailsFrom(metrics["clip_i"], 2, error)
    with pytest.raises(type(error)):
        failed.train()
    assert [path.name for path in checkpoints_of(run)] == ["step-00002"]
    assert [row["update"] for row in rows_of(run)] == [1, 2]
    assert [row["update"] for row in rows_of(run, "evaluations.jsonl")] == [0]
    assert (
        f"note: stopped after update 2; resume with: customized-grpo train {run} --resume" in capsys.readouterr().err
    )

    resumed = make_trainer(*evaluated, f"output={tmp_path / 'failed'}", resume=True)
    resumed.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows_of(run, log) == rows_of(whole.directory.path, log)
    best, expected = (bests_of(folder)[-1].name for folder in (run, whole.directory.path))
    assert best == expected == "step-00002"


@pytest.mark.parametrize("update", [1, 4])
def test_nothing_is_saved_if_there_is_nothing_new(update: int, make_trainer: MakeTrainer):
    trainer = make_trainer(*RUN)
    fail_in(trainer, update, KeyError("cat"))
    assert [path.name for path in checkpoints_of(trainer.directory.path)] == ["step-00003"] * (update > 1)
    assert not any((path / INTERIM).exists() for path in checkpoints_of(trainer.directory.path))


def test_it_is_saved_too_if_the_reward_of_another_process_fails(make_trainer: MakeTrainer, tmp_path: Path):
    def run() -> None:
        trainer = make_trainer(*RUN, "groups.prompts=2", f"output={tmp_path / 'run'}")
        error = KeyError("cat") if trainer.processes.index else DistributedError("the other one has gone")
        if trainer.processes.index:
            trainer.rewards["prompt"] = FailsFrom(trainer.rewards["prompt"], 3, error)
        with pytest.raises(type(error)):
            trainer.train()

    PartialState._reset_state()
    in_processes(2, run, tmp_path)
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step-00002"]
