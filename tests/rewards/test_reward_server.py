"""The example of a reward server: scoring and training with it."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path

import pytest
import torch

from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.rewards import remote
from customized_grpo.rewards.remote_settings import HttpSettings
from customized_grpo.rewards.scoring import RewardError, Scorer
from customized_grpo.training.trainer import Trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_server.py"


@pytest.fixture
def example() -> Iterator[str]:
    """The URL of the example server in a process of its own; `-S` hides all installed packages."""
    process = subprocess.Popen(
        [sys.executable, "-S", str(EXAMPLE), "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


def test_the_example_server_scores_detail(example: str):
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = torch.stack([noise, torch.full_like(noise, 0.5)])
    reward = HttpSettings(url=example, low=0, high=4).make(torch.device("cpu"))
    detailed, flat = Scorer({"detail": reward}).finish(images, draw_samples(2, TEST_CRITTERS, 6))["detail"].tolist()
    assert 2.5 < detailed < 4  # noise does not compress: three bytes per pixel
    assert 0 < flat < 0.2


def test_a_server_that_is_down_stops_a_run_with_its_address(example: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    address = f"{example.rpartition(':')[0]}:1"  # a port without a server
    scorer = Scorer({"detail": HttpSettings(url=f"{address}/score").make(torch.device("cpu"))})
    scores = scorer.finish(torch.rand(2, 3, 8, 8), draw_samples(2, TEST_CRITTERS, 6))
    with pytest.raises(
        RewardError, match=rf"rewards.detail could not score 100% .*: {address}/score: no answer: .*refused"
    ):
        scorer.check(scores, 0.5)
    several = {"detail": torch.cat([scores["detail"], torch.rand(2)])}
    with pytest.warns(UserWarning, match=rf"^rewards.detail could not score some images: {address}/score: no answer"):
        scorer.check(several, 0.5)
    with warnings.catch_warnings(action="error"):
        scorer.check(several, 0.5)  # once is enough


def test_images_that_some_reward_could_not_score_count_together():
    """Each reward is within the limit, but only a third of the images has both scores and is trained on."""
    scores = {"prompt": torch.tensor([[0.1, 0.2, 0.3, 0.4, nan, nan]]), "identity": torch.rand(1, 6)}
    scorer = Scorer(dict.fromkeys(scores, lambda images, samples: images[:, 0, 0, 0] * len(samples)))
    scorer.check(scores, 0.5)
    scores["identity"][0, :2] = nan
    with pytest.raises(RewardError, match=r"^67% of the images lack the score of at least one reward \(prompt, "):
        scorer.check(scores, 0.5)


def test_training_on_the_example_server_gives_every_image_its_score(
    example: str, make_trainer: Callable[..., Trainer]
):
    detail = ("name=http", "role=quality", "weight=0.2", f"url={example}", "low=0", "high=4")
    trainer = make_trainer(*(f"rewards.detail.{setting}" for setting in detail))
    trainer.train()
    (row,) = map(json.loads, (trainer.directory.path / "metrics.jsonl").read_text().splitlines())
    assert row["unscored"] == 0
    assert 0 < row["reward_detail"] < 4
    assert row["reward_detail_std"] > 0


def test_the_example_is_short():
    code = [line for line in EXAMPLE.read_text().split('"""')[2].splitlines() if re.search(r"\w", line)]
    assert len(code) <= 35
