"""Policies with known answers: the evaluation tells a perfect, a copying and an ignorant one apart."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters import world
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.data import Sample
from customized_grpo.measure.evaluate import score_cases
from customized_grpo.measure.rows import EvaluationRow, joint_dominance, mean_scores, scores_of
from customized_grpo.rewards.by_name import parse_reward
from toy_family import ToyPolicy

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
CPU = torch.device("cpu")


class Known(ToyPolicy):
    """A policy that returns `picture(sample)` for every sample."""

    def __init__(self, picture: Callable[[Sample], Image.Image]):
        super().__init__()
        self.picture = picture

    def encode(self, samples: Sequence[Sample]) -> Any:
        return list(samples)

    def noise(self, condition: list[Sample], seeds: Sequence[int]) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(condition), 1)

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: Any) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(latents)

    def decode(self, latents: Tensor, condition: list[Sample]) -> Tensor:  # noqa: ARG002
        pictures = np.stack([np.asarray(self.picture(sample).convert("RGB")) for sample in condition])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def wanted(sample: Sample) -> world.Situation:
    return world.Situation(*(sample.extra[key] for key in ("scene", "place", "hat")))


def perfect(sample: Sample) -> Image.Image:
    return world.picture(sample.extra["critter"], wanted(sample))


def copying(sample: Sample) -> Image.Image:
    return sample.reference_images()[0]


def ignorant(sample: Sample) -> Image.Image:
    """Follows the prompt, always with the same critter."""
    return world.picture(4_000_000, wanted(sample))


METRICS = ("dino", "clip_t", "oracle_identity", "oracle_prompt", "joint_success", "copy_paste")


def known_rows(picture: Callable[[Sample], Image.Image], config: RunConfig) -> list[EvaluationRow]:
    metrics = {name: parse_reward(name).make(CPU) for name in METRICS}
    cases = [(n, (sample, 0)) for n, sample in enumerate(draw_samples(40, TEST_CRITTERS, 0))]
    return list(score_cases(config, Known(picture), metrics, cases, None))


@pytest.fixture(scope="module")
def known() -> dict[str, list[EvaluationRow]]:
    config = load_config(TINY)
    return {policy.__name__: known_rows(policy, config) for policy in (perfect, copying, ignorant)}


@pytest.mark.parametrize(
    ("policy", "identity", "prompt", "joint"), [("perfect", 1, 1, 1), ("copying", 1, 0, 0), ("ignorant", 0, 1, 0)]
)
def test_the_oracle_recognises_each_policy(
    policy: str, identity: float, prompt: float, joint: float, known: dict[str, list[EvaluationRow]]
):
    overall = mean_scores(known[policy])
    for name, expected in (("oracle_identity", identity), ("oracle_prompt", prompt), ("joint_success", joint)):
        assert overall[name] == Estimate(expected, expected, expected)


def test_the_copy_paste_index_shows_copying(known: dict[str, list[EvaluationRow]]):
    """1 for the reference itself; a perfect picture is about as far from the reference as from the other view."""
    means = {policy: scores_of(rows, "copy_paste").mean().item() for policy, rows in known.items()}
    assert means["copying"] == pytest.approx(1, abs=1e-3)
    assert abs(means["perfect"]) < 0.25
    assert abs(means["ignorant"]) < 0.25


def test_the_rewards_rank_the_policies_as_designed(known: dict[str, list[EvaluationRow]]):
    """Copying raises the identity reward: that is the conflict."""
    means = {p: {m: scores_of(rows, m).mean().item() for m in ("dino", "clip_t")} for p, rows in known.items()}
    assert means["copying"]["dino"] > means["perfect"]["dino"] > means["ignorant"]["dino"]
    assert means["perfect"]["clip_t"] == pytest.approx(means["ignorant"]["clip_t"], abs=0.1)
    assert means["perfect"]["clip_t"] > means["copying"]["clip_t"] + 0.5


def test_dominance_between_known_policies(known: dict[str, list[EvaluationRow]]):
    """Perfect over ignorant: better on both only if the prompt reward happens to be higher too."""
    oracles = ["oracle_identity", "oracle_prompt"]
    rewards = ["dino", "clip_t"]
    conflict = joint_dominance(known["copying"], known["perfect"], rewards)
    assert (conflict.better.mean, conflict.worse.mean) == (0, 0)  # identity up, prompt down: neither
    tie = joint_dominance(known["perfect"], known["ignorant"], oracles)
    assert (tie.better.mean, tie.worse.mean) == (0, 0)  # the prompt is right in both
    assert joint_dominance(known["perfect"], known["ignorant"], ["oracle_identity"]).better.mean == 1
    reverse = joint_dominance(known["ignorant"], known["perfect"], rewards)
    forward = joint_dominance(known["perfect"], known["ignorant"], rewards)
    assert reverse.worse.mean == forward.better.mean > 0.2
    assert forward.compared == 40
