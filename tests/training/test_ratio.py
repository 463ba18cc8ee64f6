"""Before the first updates: replaying a rollout must give its log-probabilities."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.rollout import Rollout, Sampler
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import TrainingError, refuse_ratio

MakeTrainer = Callable[..., Trainer]


def rolled(trainer: Trainer) -> Rollout:
    """The rollout of the trainer's next update."""
    return trainer.sampler.rollout(
        trainer.policy,
        trainer.policy.encode(trainer.plan.batch(trainer.update)),
        trainer.config.groups.size,
        trainer.plan.window(trainer.update),
        lambda group, member: trainer.plan.seed(trainer.update, group, member),
    )


def with_a_doubled_adapter(
    self: Sampler, policy: FluxKontextPolicy, *rest: Any, roll: Any = Sampler.rollout
) -> Rollout:
    """A rollout in which the adapter's output counts double."""
    with contextlib.ExitStack() as hooks:
        for name, module in policy.module.named_modules():
            if ".lora_B." in name:
                hooks.enter_context(module.register_forward_hook(lambda layer, inputs, output: 2 * output))  # noqa: ARG005
        return roll(self, policy, *rest)


@pytest.mark.parametrize(("rollout_batch", "update_batch"), [(64, 64), (64, 1), (1, 64), (4, 5)])
def test_the_ratio_check_passes_in_float32_for_all_batch_sizes(
    rollout_batch: int, update_batch: int, make_trainer: MakeTrainer
):
    trainer = make_trainer(
        f"groups.rollout_batch={rollout_batch}", f"groups.update_batch={update_batch}", "groups.size=6"
    )
    row = trainer.step()  # would raise
    assert trainer.ratio_checks == 1
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert row["clip_fraction"] == 0


def test_the_ratio_check_refuses_dropout(make_trainer: MakeTrainer):
    trainer = make_trainer()
    block = trainer.policy.module.get_submodule("single_transformer_blocks.0")
    block.add_module("act_mlp", nn.Sequential(block.get_submodule("act_mlp"), nn.Dropout(0.1)))
    trainer.policy.module.train()
    with pytest.raises(TrainingError, match="dropout that is active in the update") as caught:
        trainer.step()
    assert "changes log-probabilities by" in str(caught.value)
    trainer.policy.module.eval()
    trainer.step()


def test_the_ratio_check_refuses_weights_that_changed_since_the_rollout(make_trainer: MakeTrainer):
    trainer = make_trainer()
    rollout = rolled(trainer)
    trainer.check_ratio(rollout)
    name = next(name for name in trainer.policy.trainable_parameters() if "lora_B" in name)
    with torch.no_grad():
        trainer.policy.trainable_parameters()[name].add_(1e-2)
    with pytest.raises(TrainingError, match="weights changed between rollout and update"):
        trainer.check_ratio(rollout)
    assert trainer.ratio_checks == 1


def test_the_ratio_check_refuses_nan(make_trainer: MakeTrainer):
    trainer = make_trainer()
    rollout = rolled(trainer)
    with torch.no_grad():
        rollout.trajectory[0].log_prob[2] = math.nan
    with pytest.raises(TrainingError, match="changes log-probabilities by nan"):
        trainer.check_ratio(rollout)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_ratio_is_checked_again_when_the_adapter_has_learned(
    checkpointing: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A new adapter changes nothing: a fault in its path shows in the second update of a run, or of a resumed one."""
    trainer = make_trainer(f"model.gradient_checkpointing={checkpointing}")
    checks, check = [], Trainer.check_ratio

    def counting(self: Trainer, rollout: Rollout) -> None:
        checks.append(self.learner.steps)
        check(self, rollout)

    monkeypatch.setattr(Trainer, "check_ratio", counting)
    for _ in range(3):
        trainer.step()
    assert checks == [0, 1]
    monkeypatch.setattr(Sampler, "rollout", with_a_doubled_adapter)
    fresh = make_trainer(f"model.gradient_checkpointing={checkpointing}", f"output={tmp_path / 'other'}")
    fresh.step()  # B is zero: nothing to see yet
    with pytest.raises(TrainingError, match="before the optimiser step of update 2, replaying the rollout changes"):
        fresh.step()


@pytest.mark.parametrize(("dtype", "clip_range", "allowed"), [("float32", 1e-3, "1e-05"), ("bfloat16", 1e-4, "5e-05")])
def test_what_rounding_may_do_to_the_ratio_stays_below_the_clip_range(
    dtype: str, clip_range: float, allowed: str, make_trainer: MakeTrainer
):
    trainer = make_trainer(f"model.dtype={dtype}", f"objective.clip_range={clip_range}")
    rollout = rolled(trainer)
    rollout.trajectory[0].log_prob[2] += 0.9 * clip_range
    with pytest.raises(TrainingError, match=rf"\(allowed: {allowed}, for rounding, and at most half of objective"):
        trainer.check_ratio(rollout)


def test_the_check_thinks_in_the_ratio_that_is_clipped(make_trainer: MakeTrainer):
    """A change times the step's scale may fill half the clip range."""
    settings = ("sampling.num_steps=10", "window.last=8", "objective.clip_range=2e-6")
    steps = [0, 4, 8]
    plan = make_trainer(*settings, "objective.step_scale=equal").plan
    assert plan.scales(steps).max() > 3 * plan.scales(steps).min()
    torch.testing.assert_close(plan.ratio_limits(steps) * plan.scales(steps), torch.full((3,), 1e-6).double())


def test_a_change_is_refused_at_the_step_whose_limit_it_exceeds():
    refuse_ratio([9e-6, 4e-6], [math.inf, 5e-6], [3, 7], "float32", 1)
    with pytest.raises(TrainingError, match=r"by 6\.00e-06 at denoising step 7 \(allowed: 5e-06"):
        refuse_ratio([9e-6, 6e-6], [math.inf, 5e-6], [3, 7], "float32", 1)
    with pytest.raises(TrainingError, match=r"by 2\.00e-05 at denoising step 3 \(allowed: 1e-05"):  # rounding
        refuse_ratio([2e-5, 0], [math.inf, 5e-6], [3, 7], "float32", 1)
