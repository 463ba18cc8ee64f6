"""Out of memory in rollout, update or reward: batches get smaller, and the result equals that of small batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.runtime.memory import MemoryExhaustedError, MicroBatches
from customized_grpo.training.trainer import Trainer
from runs import SMALL

MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[..., Tensor]


def limit_memory(trainer: Trainer, largest: int, monkeypatch: pytest.MonkeyPatch, *, only: str = "") -> list[int]:
    """Let the policy fit `largest` images per pass (`only` in "rollout" or "update"); returns the sizes of passes."""
    velocity, sizes = trainer.policy.velocity, []

    def limited(latents: Tensor, sigma: Any, condition: Any) -> Tensor:
        sizes.append(len(latents))
        phase = "update" if torch.is_grad_enabled() else "rollout"
        if len(latents) > largest and only in ("", phase):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has ...")
        return velocity(latents, sigma, condition)

    monkeypatch.setattr(trainer.policy, "velocity", limited)
    return sizes


@pytest.mark.parametrize("phase", ["", "rollout", "update"])
def test_the_update_equals_that_of_the_smaller_batch(
    phase: str, make_trainer: MakeTrainer, adapter_of: AdapterOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    expected = make_trainer(*SMALL, "groups.rollout_batch=2", "groups.update_batch=2", f"output={tmp_path / 'small'}")
    expected_row = expected.step()
    trainer = make_trainer(*SMALL, "groups.rollout_batch=8", "groups.update_batch=8")
    limit_memory(trainer, 2, monkeypatch, only=phase)
    with pytest.warns(
        UserWarning, match="out of memory .CUDA out of memory. Tried to allocate 2.00 GiB.: continuing with"
    ):
        row = trainer.step()
    assert torch.equal(adapter_of(trainer.policy), adapter_of(expected.policy))
    assert (row["out_of_memory"], row["rollout_batch"], row["update_batch"]) == (2, 2, 2)
    assert (trainer.update, trainer.learner.steps) == (1, 1)
    figures = {"reward_identity", "reward_prompt", "gradient_norm", "ratio_mean"}
    assert {name: row[name] for name in figures} == {name: expected_row[name] for name in figures}
    assert row["ratio_mean"] == 1.0


def test_smaller_batches_are_kept_for_the_rest_of_the_run(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(*SMALL, "groups.rollout_batch=4", "groups.update_batch=4")
    sizes = limit_memory(trainer, 2, monkeypatch)
    with pytest.warns(UserWarning, match="groups.rollout_batch=2 and groups.update_batch=2"):
        trainer.step()
    sizes.clear()
    row = trainer.step()
    assert max(sizes) <= 2
    assert row["out_of_memory"] == 1


def test_a_failed_attempt_is_undone_before_the_next():
    """Otherwise remote rewards would return the scores of its batches too."""
    batches, events = MicroBatches(rollout=4, update=4), []

    def attempt() -> dict[str, Any]:
        events.append(f"attempt {batches.rollout}")
        if batches.rollout > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"update": 1}

    with pytest.warns(UserWarning, match="out of memory"):
        row = batches.run(attempt, lambda: events.append("undo"))
    assert events == ["attempt 4", "undo", "attempt 2", "undo", "attempt 1"]
    assert row == {"update": 1, "out_of_memory": 2, "rollout_batch": 1, "update_batch": 1}


def test_if_not_even_one_image_fits_the_message_says_what_to_make_smaller(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(*SMALL, "groups.rollout_batch=2", "groups.update_batch=2")
    limit_memory(trainer, 0, monkeypatch)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(MemoryExhaustedError, match=r"one image at a time.*model\.height"),
    ):
        trainer.step()


def out_of_memory_once(trainer: Trainer, name: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the policy's or the optimiser's method `name` do its work and then fail, once, after so many steps."""
    owner: Any = trainer.learner.optimizer if name == "step" else trainer.policy
    original, failed = getattr(owner, name), []

    def failing(*inputs: Any) -> Any:
        result = original(*inputs)
        if not failed and trainer.learner.steps == after:
            failed.append(name)
            torch.rand(())  # as a user's own reward may do
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(owner, name, failing)


EMA = ("adapter.ema.decay=.5", "adapter.ema.every=1")
# what fails, after so many optimiser steps; updates before; the settings of the run
LATE = {
    "rollout": ("noise", 0, 0, ()),
    "a second minibatch": ("velocity", 1, 0, ("objective.minibatches=2",)),
    "a second pass over the rollout": ("velocity", 1, 0, ("objective.updates_per_rollout=2", *EMA)),
    "the first optimiser step": ("step", 0, 0, EMA),
    "the second update's optimiser step": ("step", 1, 1, EMA),
}


@pytest.mark.parametrize("case", LATE)
@pytest.mark.filterwarnings("ignore:out of memory")
def test_wherever_memory_ran_out_the_update_is_repeated_from_its_beginning(
    case: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Also half an optimiser step is undone: its moments and counts change before its last temporary does not fit."""
    name, after, before, settings = LATE[case]
    ends = []
    for folder in ("small", "halved"):
        batches = ("groups.rollout_batch=4", "groups.update_batch=4", f"output={tmp_path / folder}")
        trainer = make_trainer(*SMALL, *settings, *batches)
        torch.manual_seed(0)
        for _ in range(before):
            trainer.step()
        if folder == "small":
            trainer.batches.rollout = trainer.batches.update = 2
        else:
            out_of_memory_once(trainer, name, after, monkeypatch)
        row = trainer.step()
        ends.append((all_state(trainer), row["gradient_norm"], row["reward_identity"], trainer.update))
    (expected, *figures), (state, *other) = ends
    assert row["out_of_memory"] == 1
    assert state.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(state[key], expected[key])] == []
    assert figures == other


def all_state(trainer: Trainer) -> dict[str, Tensor]:
    """Adapter, moving average, moments, counts, torch's random state."""
    learner = trainer.learner
    moments = {
        f"{index}.{name}": value
        for index, parameter in enumerate(learner.parameters)
        for name, value in learner.optimizer.state[parameter].items()
    }
    shadows = {f"ema {index}": weight for each in learner.shadows for index, weight in enumerate(each.weights)}
    weights = {f"adapter {index}": weight.detach() for index, weight in enumerate(learner.parameters)}
    return {**weights, **moments, **shadows, "steps": torch.tensor(learner.steps), "random": torch.get_rng_state()}


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_run_that_halved_its_batches_resumes_with_them(
    make_trainer: MakeTrainer, adapter_of: AdapterOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Otherwise it would begin again with large ones, and differ from an uninterrupted run in the last digits."""
    settings = (*SMALL, "groups.rollout_batch=4", "groups.update_batch=4", "save_every=1")
    whole = make_trainer(*settings, "updates=2", f"output={tmp_path / 'whole'}")
    out_of_memory_once(whole, "velocity", 0, monkeypatch)
    whole.train()
    first = make_trainer(*settings, "updates=1")
    out_of_memory_once(first, "velocity", 0, monkeypatch)
    first.train()
    second = make_trainer(*settings, "updates=2", resume=True)
    sizes = limit_memory(second, 2, monkeypatch)
    second.train()
    assert max(sizes) == 2
    assert second.batches == whole.batches
    assert torch.equal(adapter_of(second.policy), adapter_of(whole.policy))
    other = make_trainer(*settings, "updates=3", "groups.rollout_batch=3", "groups.update_batch=3", resume=True)
    other.train()
    assert (other.batches.rollout, other.batches.update) == (3, 3)  # the user's later word counts


def test_an_evaluation_that_does_not_fit_is_done_in_halves(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    settings = (*SMALL, "data.held_out_samples=6")
    expected, _ = report(make_trainer(*settings, f"output={tmp_path / 'whole'}"))
    trainer = make_trainer(*settings)
    sizes = limit_memory(trainer, 2, monkeypatch)
    row, _ = report(trainer)
    assert max(sizes) > 2
    assert row["identity_reward"] == pytest.approx(expected["identity_reward"], abs=1e-5)
    limit_memory(trainer, 0, monkeypatch)
    with pytest.raises(MemoryExhaustedError, match=r"^out of memory while evaluating .*1 image at a time"):
        report(trainer)


def report(trainer: Trainer) -> Any:
    return trainer.held_out.report(trainer.policy, trainer.sampler.sigmas, grid=0)


def test_a_reward_that_runs_out_of_memory_loses_no_scores(make_trainer: MakeTrainer, tmp_path: Path):
    trainer, expected = make_trainer(*SMALL), make_trainer(*SMALL, f"output={tmp_path / 'whole'}")
    identity = trainer.rewards["identity"]

    def hungry(images: Tensor, samples: Any) -> Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return identity(images, samples)

    trainer.rewards["identity"] = hungry
    row, expected_row = trainer.step(), expected.step()
    assert row["reward_identity"] == pytest.approx(expected_row["reward_identity"], abs=1e-6)
    assert row["unscored"] == 0
