"""What an update does not compute, counted in passes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.training.trainer import Trainer
from runs import SMALL

MakeTrainer = Callable[..., Trainer]


def trained_images(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each pass forward and backward from now on, without those that check the ratio."""
    trainer.ratio_checks = 2
    velocity, sizes = trainer.policy.velocity, []

    def counting(latents: Tensor, sigma: Any, condition: Any) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(latents))
        return velocity(latents, sigma, condition)

    monkeypatch.setattr(trainer.policy, "velocity", counting)
    return sizes


@pytest.mark.parametrize(("flat", "trained"), [(0, 6), (1, 3), (2, 0)])
def test_a_flat_group_has_no_training_pass(
    flat: int, trained: int, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    """Two groups of three images that train one step."""
    trainer = make_trainer(*SMALL, "groups.prompts=2")

    def reward(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        assert len(images) == len(samples)
        scores = torch.arange(len(images)).float().square()  # no image is its group's mean
        scores[: 3 * flat] = 0.5
        return scores

    trainer.rewards.update({"identity": reward, "prompt": reward})
    sizes = trained_images(trainer, monkeypatch)
    row = trainer.step()
    assert row["flat_groups"] == flat
    assert sum(sizes) == trained


def test_a_sample_is_encoded_once_in_a_run(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    """Two samples in six updates of one group."""
    trainer, encoded = make_trainer(*SMALL, "data.train_samples=2"), []
    encoder: Any = trainer.policy.encoder  # pyright: ignore[reportAttributeAccessIssue]
    entry = encoder.entry

    def counting(sample: Sample) -> Any:
        encoded.append(sample.id)
        return entry(sample)

    monkeypatch.setattr(encoder, "entry", counting)
    for _ in range(6):
        trainer.step()
    assert sorted(encoded) == sorted(sample.id for sample in trainer.samples)
