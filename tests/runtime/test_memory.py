"""Out of memory in rollout, update or reward: smaller batches, and the update is what it would have been with them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.run.logs import read_log
from customized_grpo.runtime.memory import MemoryExhaustedError
from customized_grpo.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[..., Tensor]


def short_of_memory(trainer: Trainer, largest: int, monkeypatch: pytest.MonkeyPatch, *, only: str = "") -> list[int]:
    """The policy fits `largest` images a pass; `only`: "update" where a gradient is wanted, "rollout" where not."""
    velocity, seen = trainer.policy.velocity, []

    def limited(latents: Tensor, sigma: Any, condition: Any) -> Tensor:
        seen.append(len(latents))
        here = "update" if torch.is_grad_enabled() else "rollout"
        if len(latents) > largest and only in ("", here):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has ...")
        return velocity(latents, sigma, condition)

    monkeypatch.setattr(trainer.policy, "velocity", limited)
    return seen


@pytest.mark.parametrize("where", ["", "rollout", "update"])
def test_the_update_is_the_one_of_the_smaller_batch(
    where: str, make_trainer: MakeTrainer, adapter_of: AdapterOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    expected = make_trainer("groups.rollout_batch=2", "groups.update_batch=2", f"output={tmp_path / 'small'}")
    want = expected.step()
    trainer = make_trainer("groups.rollout_batch=8", "groups.update_batch=8")
    short_of_memory(trainer, 2, monkeypatch, only=where)
    with pytest.warns(
        UserWarning, match="out of memory .CUDA out of memory. Tried to allocate 2.00 GiB.: going on with"
    ):
        row = trainer.step()
    assert torch.equal(adapter_of(trainer.policy), adapter_of(expected.policy))
    assert (row["out_of_memory"], row["rollout_batch"], row["update_batch"]) == (2, 2, 2)
    assert (trainer.update, trainer.optimizer_steps) == (1, 1)
    figures = {"reward_identity", "reward_prompt", "gradient_norm", "ratio_mean"}
    assert {name: row[name] for name in figures} == {name: want[name] for name in figures}


def test_smaller_batches_stay_for_the_rest_of_the_run(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer("groups.rollout_batch=4", "groups.update_batch=4")
    seen = short_of_memory(trainer, 2, monkeypatch)
    with pytest.warns(UserWarning, match="groups.rollout_batch=2 and groups.update_batch=2"):
        trainer.step()
    seen.clear()
    row = trainer.step()
    assert max(seen) <= 2
    assert row["out_of_memory"] == 1


def test_the_ratio_is_one_after_a_halved_update(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer("groups.rollout_batch=4", "groups.update_batch=4")
    short_of_memory(trainer, 2, monkeypatch, only="update")
    with pytest.warns(UserWarning, match="out of memory"):
        assert trainer.step()["ratio_mean"] == 1.0


def test_where_not_one_image_fits_the_message_says_what_to_make_smaller(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer("groups.rollout_batch=2", "groups.update_batch=2")
    short_of_memory(trainer, 0, monkeypatch)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(MemoryExhaustedError, match=r"one image at a time.*model\.height"),
    ):
        trainer.step()


def test_after_an_optimiser_step_the_update_is_not_done_twice(make_trainer: MakeTrainer):
    trainer = make_trainer("objective.updates_per_rollout=2")
    replay, calls = trainer.sampler.replay, []

    def failing(*args: Any) -> Any:
        if trainer.optimizer_steps == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        calls.append(args)
        return replay(*args)

    object.__setattr__(trainer.sampler, "replay", failing)
    with pytest.raises(MemoryExhaustedError, match=r"cannot be done again; go on with --resume and groups\.rollout"):
        trainer.step()
    assert trainer.optimizer_steps == 1


def test_half_an_optimiser_step_is_not_done_twice(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    """Moments and counts may have moved when its last temporary does not fit."""
    trainer = make_trainer()
    step = trainer.optimizer.step

    def half() -> None:
        step()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.optimizer, "step", half)
    with pytest.raises(MemoryExhaustedError, match=r"cannot be done again; go on with --resume"):
        trainer.step()
    assert {state["step"].item() for state in trainer.optimizer.state.values()} == {1.0}


def test_an_evaluation_that_does_not_fit_is_made_in_halves(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    settings = ("updates=1", "evaluation.every=1", "data.held_out_samples=6")
    whole = make_trainer(*settings, f"output={tmp_path / 'whole'}")
    whole.train()
    trainer = make_trainer(*settings)
    seen = short_of_memory(trainer, 2, monkeypatch)
    with pytest.warns(UserWarning, match="out of memory"):  # of the update, which is halved as well
        trainer.train()
    assert max(seen) > 2
    logs = [read_log(each.directory.path / "evaluations.jsonl") for each in (whole, trainer)]
    for expected, row in zip(*logs, strict=True):
        assert row["identity_reward"] == pytest.approx(expected["identity_reward"], abs=1e-5)
    short_of_memory(trainer, 0, monkeypatch)
    with pytest.raises(MemoryExhaustedError, match=r"^out of memory while evaluating .*1 images at a time"):
        trainer.held_out.report(trainer.policy, trainer.sampler.sigmas, grid=0)


def test_a_reward_that_runs_out_of_memory_costs_nothing(make_trainer: MakeTrainer, tmp_path: Any):
    trainer, expected = make_trainer(), make_trainer(f"output={tmp_path / 'whole'}")
    identity = trainer.rewards["identity"]

    def hungry(images: Tensor, samples: Any) -> Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return identity(images, samples)

    trainer.rewards["identity"] = hungry
    row, want = trainer.step(), expected.step()
    assert row["reward_identity"] == pytest.approx(want["reward_identity"], abs=1e-6)
    assert row["unscored"] == 0
