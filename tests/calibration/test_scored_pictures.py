import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.calibration.known_pictures import ROWS, Cases
from customized_grpo.calibration.scored_pictures import (
    Candidate,
    Judged,
    correlation,
    judge,
    load_candidates,
    row_statistics,
)
from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.rewards import Reward
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.scoring import RewardError

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
NAN = math.nan


def brightness(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    return images.double().mean(dim=(1, 2, 3)) + torch.tensor([len(sample.prompt) for sample in samples])


@pytest.fixture
def four(critters: Cases) -> Judged:
    """A reward on four cases."""
    cases = Cases(critters.samples[:4])
    return judge(cases, [Candidate("brightness", brightness, "identity")], (32, 32), 16)[0]


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch(critters: Cases):
    """Every row, in its place; the tables of two batch sizes are equal."""
    one, many = (judge(critters, [Candidate("", brightness, "both")], (32, 32), batch)[0] for batch in (7, 64))
    assert torch.equal(one.table, many.table)
    shown = [each for row in ROWS for each in critters.rows[row] if each]
    pictures = np.stack([np.asarray(each.picture) for each in shown])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    expected = brightness(images, [each.sample for each in shown])
    torch.testing.assert_close(many.table.T.flatten(), expected)
    assert expected.std() > 0.1


def test_pictures_are_fitted_to_the_size_of_generated_ones(photographs: Callable[..., Cases]):
    sizes = []

    def sized(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        sizes.append(tuple(images.shape[1:]))
        assert images.min() >= 0
        assert images.max() <= 1
        return torch.zeros(len(samples))

    judge(photographs(cat=("cat", 1), cup=("cup", 1)), [Candidate("", sized, "both")], (48, 16), 64)
    assert {*sizes} == {(3, 16, 48)}


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (lambda images, _: images.mean((2, 3)), r"reward 'mine' returned shape \(16, 3\) for 16 images; return \[N\]"),
        (lambda images, _: torch.full((len(images),), math.inf), "reward 'mine' returned an infinity; return NaN"),
    ],
)
def test_a_reward_that_training_would_refuse_is_refused(reward: Reward, complaint: str, critters: Cases):
    with pytest.raises(RewardError, match=complaint):
        judge(critters, [Candidate("mine", reward, "prompt")], (32, 32), 16)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_of_a_row_by_hand():
    """1, 2, 6 and one unscored: mean 9 / 3, variance (4 + 1 + 9) / 2 = 7."""
    row = row_statistics(torch.tensor([1.0, 2.0, NAN, 6.0], dtype=torch.float64), ["a", "b", "c", "d"], 1)
    assert (row.mean, row.spread, row.min, row.max) == (3, pytest.approx(math.sqrt(7)), 1, 6)
    assert (row.scored, row.unscored, row.missing) == (3, 1, 1)
    assert (row.low, row.high) == (1, 6)  # of 27 equally likely resamples, one each: 3.7 % are 1 1 1 and 6 6 6
    empty = row_statistics(torch.tensor([NAN, NAN]), ["a", "b"])
    assert (empty.mean, empty.low, empty.spread, empty.scored, empty.unscored) == (None, None, None, 0, 2)
    assert row_statistics(torch.tensor([2.0]), ["a"]).spread is None


def test_pairs_count_ties_half_and_leave_out_unscored_cases(four: Judged):
    first, second = torch.tensor([[1.0, 2.0, 3.0, NAN], [0.0, 2.0, 5.0, 1.0]])
    pairs = four.pairs(first, second)
    assert pairs
    assert (pairs.share.mean, pairs.count) == (0.5, 3)  # 1, 1/2, 0
    assert (pairs.first, pairs.second) == (2, pytest.approx(7 / 3))
    assert four.pairs(first, first * NAN) is None


def test_correlation_by_hand():
    """(-1, 0, 1) . (1, -1, 0) = -1, both have length sqrt(2): -1/2."""
    first = torch.tensor([1.0, 2.0, 3.0, NAN])
    assert correlation(first, torch.tensor([3.0, 1.0, 2.0, 9.0])) == pytest.approx(-0.5)
    assert correlation(first, 2 * first + 1) == pytest.approx(1)
    assert correlation(first, torch.full((4,), 0.1)) is None
    assert correlation(first, first * NAN) is None


# --- rewards by name -------------------------------------------------------------------------------------------------


def tiny(*overrides: str) -> RunConfig:
    return load_config(TINY, overrides)


def test_rewards_and_metrics_are_loaded_once_each():
    config = tiny("evaluation.metrics=[dino, clip_t, joint_success]")
    lines = ("joint_success", "dino against=other_view", f"dino model={FOLDER / 'dino'}")
    further = [parse_metric(line) for line in lines]
    loaded = load_candidates(config, further)
    assert [(each.label, each.key, each.measures) for each in loaded] == [
        ("dino", "identity", "identity"),
        ("clip_t", "prompt", "prompt"),
        ("joint_success", None, "both"),
        ("dino against=other_view", None, "identity"),
        (f"dino model={FOLDER / 'dino'}", None, "identity"),
    ]
    assert [each.encoder for each in loaded] == ["dino", "clip", None, "dino", "dino"]


def test_the_same_reward_in_two_roles_keeps_two_names():
    labels = [each.label for each in load_candidates(tiny("rewards.prompt.name=dino", "evaluation.metrics=[]"))]
    assert labels == ["dino", "dino model=critters"]


def test_settings_are_written_as_a_user_would_type_them():
    trained = Candidate("dino", brightness, "identity", "identity")
    metric = Candidate("dino against=other_view", brightness, "identity", against="other_view")
    assert trained.set_to("model", "x") == "rewards.identity.model=x"
    assert metric.set_to("model", "x") == '--metric "dino against=other_view model=x"'
    assert metric.set_to("against", "reference") == '--metric "dino"'
    assert metric.set_to("name", "...") == '--metric "..."'
