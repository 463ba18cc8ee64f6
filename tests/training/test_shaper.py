"""What shaping remembers: running figures that weights and pooled advantages follow, and that a resumed run keeps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import OWN, Calibration, sigma_schedule
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.training.advice import notices
from customized_grpo.training.plan import Plan
from customized_grpo.training.shaper import Shaper
from customized_grpo.training.trainer import Trainer
from runs import CALIBRATED, REMEMBERING, SMALL, rows_of

MakeTrainer = Callable[..., Trainer]
SCALES = {"prompt": Calibration(0, 1), "identity": Calibration(0, 1, capped=True)}


@pytest.fixture
def shaper_of(make_config: Callable[..., RunConfig], samples: list[Sample]) -> Callable[..., Shaper]:
    def make(*overrides: str) -> Shaper:
        config = make_config("weighting.kind=constant", *overrides)
        plan = Plan(config, samples[:4], sigma_schedule(config.sampling.num_steps, 3.0))
        return Shaper(config, plan, SCALES)

    return make


def scores(prompt: list[list[float]], identity: list[list[float]]) -> dict[str, Tensor]:
    return {"prompt": torch.tensor(prompt), "identity": torch.tensor(identity)}


FIRST = scores([[0.0, 1.0, 0.5]], [[0.4, 0.6, 0.8]])  # spreads .5 and .2
FLAT = scores([[0.50, 0.51, 0.52]], [[0.6, 0.6, 0.9]])  # spreads .01 and .1732


def test_a_group_without_real_differences_pulls_little(shaper_of: Callable[..., Shaper]):
    """kappa 1: the second update's prompts are divided by the mean spread of both, (.5 + .01) / 2 = .255."""
    shaper = shaper_of("shaping.rule=linear", "shaping.normalise=pooled", "shaping.kappa=1", "weighting.prompt=1")
    weight = torch.ones(1)
    for update, expected in ((FIRST, [-1.0, 1.0, 0.0]), (FLAT, [-0.01 / 0.255, 0.0, 0.01 / 0.255])):
        running = shaper.observe(update, [0])
        found = shaper.advantages(update, weight, running)[0, :, 0]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-4)
        shaper.running = running


def test_the_rules_own_quantity_is_pooled_too(shaper_of: Callable[..., Shaper]):
    shaper = shaper_of("shaping.rule=joint", "shaping.normalise=pooled", "shaping.kappa=1", "shaping.joint_share=1")
    shaper.running = shaper.observe(FIRST, [0])
    running = shaper.observe(FLAT, [0])
    products = torch.tensor([[0.0, 0.6, 0.4], [0.3, 0.306, 0.468]])
    assert running.spreads[OWN] == pytest.approx(products.std(dim=1).mean().item())
    found = shaper.advantages(FLAT, torch.tensor([0.5]), running)[0, :, 0]
    expected = (torch.tensor([0.3, 0.306, 0.468]) - 0.358) / running.spreads[OWN]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_observing_twice_without_keeping_changes_nothing(shaper_of: Callable[..., Shaper]):
    """An update that ran out of memory is repeated: its rewards count once."""
    shaper = shaper_of("weighting.balance=dual", "shaping.rule=joint", "shaping.normalise=pooled", CALIBRATED)
    shaper.running = before = shaper.observe(FIRST, [0])
    again = [shaper.observe(FLAT, [0]) for _ in range(2)]
    assert again[0] == again[1] != before
    assert again[0].updates == 2
    assert shaper.running == before


def test_proportional_weights_by_hand(shaper_of: Callable[..., Shaper]):
    """Gains in spreads: prompt .5 / .5 = 1, identity .6 / .2 = 3, so .3 : .7 becomes .9 : .7."""
    shaper = shaper_of("weighting.balance=proportional", "weighting.prompt=.3")
    running = shaper.observe(FIRST, [0, 1])
    assert shaper.prompt_weight([0, 1], running).tolist() == pytest.approx([0.9 / 1.6] * 2)
    assert shaper.figures(running) == {"level": pytest.approx(0.9 / 1.6)}


def test_dual_weights_by_hand(shaper_of: Callable[..., Shaper]):
    """The prompt's mean falls from .5 to .9 x .5 + .1 x .0, in spreads of .5: lambda = .02 x .05 / .5."""
    shaper = shaper_of("weighting.balance=dual", "weighting.prompt=.3")
    shaper.running = shaper.observe(FIRST, [0])
    running = shaper.observe(scores([[-0.5, 0.5, 0.0]], [[0.4, 0.6, 0.8]]), [0])
    assert shaper.prompt_weight([0], running).item() == pytest.approx(0.3 + 0.02 * 0.05 / 0.5)
    assert shaper_of().figures(running) == {}


def test_a_row_has_the_level_only_if_it_follows_training(make_trainer: MakeTrainer):
    row = make_trainer(*SMALL, "weighting.kind=constant", "weighting.balance=dual").step()
    assert row["level"] == pytest.approx(0.5)
    assert [step["prompt_weight"] for step in row["steps"]] == pytest.approx([row["level"]])


def test_a_resumed_run_remembers(make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path):
    settings = (*SMALL, *REMEMBERING, "save_every=1")
    whole = make_trainer(*settings, "updates=3", f"output={tmp_path / 'whole'}")
    whole.train()
    make_trainer(*settings, "updates=2").train()
    resumed = make_trainer(*settings, "updates=3", resume=True)
    resumed.train()
    assert torch.equal(adapter_of(whole.policy), adapter_of(resumed.policy))
    assert rows_of(whole.directory.path) == rows_of(resumed.directory.path)
    assert whole.shaper.running == resumed.shaper.running
    assert resumed.shaper.running.updates == 3
    forgetful = make_trainer(*settings, "updates=3", f"output={tmp_path / 'forgetful'}")
    forgetful.update = 2  # the third update without the memory of two: the weights would differ
    assert forgetful.step()["level"] != pytest.approx(rows_of(whole.directory.path)[2]["level"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "notice"),
    [
        (["shaping.kappa=.5"], "shaping.kappa has no effect without shaping.normalise=pooled"),
        (["shaping.joint_share=.3"], 'only the rule "joint" reads shaping.joint_share'),
        (["shaping.threshold=.3"], 'only the rule "gated" reads shaping.threshold'),
        ([CALIBRATED], 'the rule "sars" needs no calibration: shaping.calibration only adds the held-out'),
        (["shaping.rule=min", "weighting.balance=dual"], "the section `weighting` has no effect"),
        (["weighting.kind=constant", "weighting.high=.9"], "only weighting.kind=tdw reads weighting.high"),
        (
            ["shaping.rule=joint", CALIBRATED, "shaping.joint_share=1", "weighting.prompt=.9"],
            "the section `weighting` has no effect",
        ),
        (["on_degradation=balance", "weighting.balance=dual"], "balance=dual acts from the beginning"),
        (["on_degradation=stop", "evaluation.every=0"], "a trend takes 5 evaluations, and the run has 0"),
        (["on_degradation=stop", "evaluation.every=5", "updates=19"], "5 evaluations, and the run has 4"),
        (["data.root=photos"], "data.source=critters draws its samples: data.root=photos has no effect"),
        (["adapter.ema.every=2"], "adapter.ema.every has no effect without adapter.ema.decay"),
        (["adapter.ema.decay=.9", "updates=7"], "untrained adapter: the run has 7 optimiser steps, and the average"),
        (["sampling.finish_steps=1", "window.strategy=all", "window.size=null"], "every step but the last is trained"),
    ],
)
def test_settings_that_nothing_reads_are_named(overrides: list[str], notice: str, shaper_of: Callable[..., Shaper]):
    assert notice in "\n".join(notices(shaper_of(*overrides).plan))


@pytest.mark.parametrize("balance", ["dual", "proportional"])
def test_nothing_is_named_when_everything_is_read(balance: str, shaper_of: Callable[..., Shaper]):
    settings = ["shaping.rule=joint", CALIBRATED, "shaping.joint_share=.3", f"weighting.balance={balance}"]
    settings += ["on_degradation=stop", "evaluation.every=5", "updates=20", "adapter.ema.decay=.9"]
    shaper = shaper_of(*settings, "sampling.finish_steps=1")
    assert not [
        notice for notice in notices(shaper.plan) if "effect" in notice or "never" in notice or "ema" in notice
    ]
