"""What a run keeps beside its last adapter: a moving average, and the best adapter by a held-out figure."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.files.adapter_places import ADAPTER_FILE, find_adapter
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.run.checkpoints import describe_best
from customized_grpo.sharing.card import PICTURES
from customized_grpo.training.record import Highest
from customized_grpo.training.trainer import Trainer
from runs import SMALL, rows_of

MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[[Policy], Tensor]
AVERAGED = (*SMALL, "adapter.ema.decay=.75", "adapter.ema.every=2", "evaluation.every=2", "save_every=2")


def weights_in(folder: Path) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / ADAPTER_FILE).items())])


def reports(trainer: Trainer, series: list[float]) -> None:
    """Let the evaluations find these values of joint_success, whatever the pictures show."""
    values = iter(series)
    figures = trainer.held_out._figures

    def known(*args: Any, **named: Any) -> Any:
        row, shown = figures(*args, **named)
        return row | {"joint_success": next(values)}, shown

    object.__setattr__(trainer.held_out, "_figures", known)


# --- the moving average ----------------------------------------------------------------------------------------------


def test_the_average_by_hand(make_policy: Callable[..., Policy], adapter_of: AdapterOf):
    policy = make_policy(rank=2)
    start, shadow = adapter_of(policy), Shadow(policy, decay=0.75, every=2)
    with torch.no_grad():
        for weight in policy.trainable_parameters().values():
            weight.add_(1)
    shadow.follow(1)
    with shadow.in_place():
        assert torch.equal(adapter_of(policy), start)  # only every second step counts
    shadow.follow(2)
    with shadow.in_place():
        torch.testing.assert_close(adapter_of(policy), start + 0.25)
    torch.testing.assert_close(adapter_of(policy), start + 1)


def test_the_average_soon_forgets_the_untrained_adapter(make_policy: Callable[..., Policy], adapter_of: AdapterOf):
    """With a warm-up it keeps 2/11 of its beginning the first time, 3/12 of what it then is the second time."""
    policy = make_policy(rank=2)
    start, shadow = adapter_of(policy), Shadow(policy, decay=0.9, every=8, warm_up=True)
    with torch.no_grad():
        for weight in policy.trainable_parameters().values():
            weight.add_(1)
    for steps, kept in ((8, 2 / 11), (16, 2 / 11 * 3 / 12)):
        shadow.follow(steps)
        with shadow.in_place():
            torch.testing.assert_close(adapter_of(policy), start + 1 - kept)
    shadow.follow(8 * 1000)
    with shadow.in_place():
        torch.testing.assert_close(adapter_of(policy), start + 1 - kept * 0.9)


def test_an_error_inside_puts_the_adapter_back(make_policy: Callable[..., Policy], adapter_of: AdapterOf):
    policy = make_policy(rank=2)
    shadow = Shadow(policy, decay=0.5)
    with torch.no_grad():
        next(iter(policy.trainable_parameters().values())).add_(1)
    before = adapter_of(policy)
    with pytest.raises(KeyError), shadow.in_place():
        raise KeyError
    assert torch.equal(adapter_of(policy), before)


def test_a_run_evaluates_and_saves_its_average(make_trainer: MakeTrainer):
    trainer = make_trainer(*AVERAGED, "updates=4", "optimizer.lr=1e-2")
    started = [weight.clone() for weight in trainer.shadows["ema"].weights]
    followed = []
    follow = Shadow.follow

    def recording(self: Shadow, steps: int) -> None:
        followed.append([weight.detach().clone() for weight in self.parameters])
        follow(self, steps)

    trainer.shadows["ema"].follow = recording.__get__(trainer.shadows["ema"])  # pyright: ignore
    trainer.train()
    steps = zip(started, *followed[1::2], strict=True)
    once, twice = 2 / 11, 3 / 12  # a decay of .75 comes later
    expected = [twice * (once * start + (1 - once) * two) + (1 - twice) * four for start, two, four in steps]
    torch.testing.assert_close(trainer.shadows["ema"].weights, expected)
    run = trainer.directory.path
    kept, plain = weights_in(run / "adapter-ema"), weights_in(run / "adapter")
    assert not torch.equal(kept, plain)
    torch.testing.assert_close(kept.sort().values, torch.cat([w.flatten() for w in expected]).sort().values)
    names, of_average = ({file.name for file in (run / name).iterdir()} for name in ("adapter", "adapter-ema"))
    assert names - {PICTURES} == of_average  # those of an evaluation are made by the adapter itself
    first, *_, last = rows_of(run, "evaluations.jsonl")
    assert first["joint_success_ema"] == first["joint_success"]  # before the first update they are the same
    assert last["prompt_reward_ema"] != last["prompt_reward"]
    assert last["scored"]["prompt_reward_ema"] == 2
    with trainer.shadows["ema"].in_place():
        again, _ = trainer.held_out.report(trainer.policy, trainer.sampler.sigmas, grid=0)
    assert last["prompt_reward_ema"] == pytest.approx(again["prompt_reward"])


def test_the_average_resumes_exactly(make_trainer: MakeTrainer, tmp_path: Path):
    whole = make_trainer(*AVERAGED, "updates=4", f"output={tmp_path / 'whole'}")
    whole.train()
    make_trainer(*AVERAGED, "updates=2").train()
    resumed = make_trainer(*AVERAGED, "updates=4", resume=True)
    resumed.train()
    for name in ("adapter", "adapter-ema", "checkpoints/step-00004/ema"):
        one, two = (trainer.directory.path / name / ADAPTER_FILE for trainer in (whole, resumed))
        assert one.read_bytes() == two.read_bytes()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows_of(whole.directory.path, log) == rows_of(resumed.directory.path, log)


def test_without_an_average_nothing_of_it_is_left(make_trainer: MakeTrainer):
    trainer = make_trainer(*SMALL, "evaluation.every=1")
    trainer.train()
    assert trainer.shadows == {}
    assert not list(trainer.directory.path.rglob("*ema*"))
    assert not [name for name in rows_of(trainer.directory.path, "evaluations.jsonl")[0] if name.endswith("_ema")]


# --- the best adapter ------------------------------------------------------------------------------------------------

BEST = (*SMALL, "keep_best=joint_success", "evaluation.every=1", "save_every=2", "optimizer.lr=1e-2")


def test_the_best_adapter_is_kept(make_trainer: MakeTrainer):
    trainer = make_trainer(*BEST, "updates=4")
    reports(trainer, [0.1, 0.2, 0.5, 0.5, 0.3])  # equal is not better
    adapters = []
    save = trainer.directory.save_best
    trainer.directory.save_best = lambda about, policy: (adapters.append(about), save(about, policy))  # pyright: ignore
    trainer.train()
    run = trainer.directory.path
    assert [about.update for about in adapters] == [0, 1, 2]
    assert [folder.name for folder in (run / "best").iterdir()] == ["step-00002"]
    assert json.loads((run / "best/step-00002/best.json").read_text()) == {
        "update": 2, "figure": "joint_success", "value": 0.5,
    }  # fmt: skip
    assert find_adapter(run / "best") == run / "best" / "step-00002"
    assert describe_best(run) == f"best adapter: {run / 'best' / 'step-00002'} (joint_success 0.500, update 2)"
    best, at_two = (weights_in(run / name) for name in ("best/step-00002", "checkpoints/step-00002"))
    assert torch.equal(best, at_two)
    assert not torch.equal(best, weights_in(run / "adapter"))


def test_the_best_average_is_kept(make_trainer: MakeTrainer):
    trainer = make_trainer(*AVERAGED, "updates=2", "optimizer.lr=1e-2", "keep_best=joint_success_ema")
    reports(trainer, [0.1, 0.1, 0.2, 0.9])  # the adapter and its average before and after
    trainer.train()
    run = trainer.directory.path
    assert torch.equal(weights_in(run / "best/step-00002"), weights_in(run / "adapter-ema"))


def test_a_run_that_died_goes_on_with_the_best_of_its_checkpoint(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    """Update 3 was better and its adapter saved, but the run died before the next checkpoint."""
    dying = make_trainer(*BEST, "updates=6")
    reports(dying, [0.1, 0.2, 0.3, 0.9])
    optimise = dying.learner.optimise

    def dies(update: int, *parts: Any) -> Any:
        if update == 4:
            raise RuntimeError("the power fails")
        return optimise(update, *parts)

    monkeypatch.setattr(dying.learner, "optimise", dies)
    with pytest.raises(RuntimeError, match="the power fails"):
        dying.train()
    best = dying.directory.path / "best"
    assert sorted(folder.name for folder in best.iterdir()) == ["step-00002", "step-00003"]
    resumed = make_trainer(*BEST, "updates=4", resume=True)
    reports(resumed, [0.25, 0.2])
    resumed.train()
    assert [folder.name for folder in best.iterdir()] == ["step-00002"]


def test_an_evaluation_that_could_not_be_scored_is_not_the_best(make_trainer: MakeTrainer):
    trainer = make_trainer(*BEST, "updates=2")
    reports(trainer, [math.nan, 0.1, math.nan])
    trainer.train()
    assert [folder.name for folder in (trainer.directory.path / "best").iterdir()] == ["step-00001"]


def test_a_figure_of_few_cases_is_not_the_best():
    best = Highest("joint_success", max_unscored=0.5)
    rows = [(0.5, 8), (0.9, 3), (0.6, 4), (None, 0), (0.55, 8), (0.7, 64), (0.8, 31), (0.8, 32)]
    beaten = [best.beaten_by({"joint_success": value, "scored": {"joint_success": count}}) for value, count in rows]
    assert beaten == [True, False, True, False, False, True, False, True]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["keep_best=identity_reward"], "identity_reward is trained on, so it rises in any case"),
        (["keep_best=joint_succes"], "'joint_succes' is not among evaluation.metrics; did you mean 'joint_success'?"),
        (["keep_best=copy_paste", "evaluation.metrics=[copy_paste]"], "copy_paste is best when it is low"),
        (["keep_best=joint_success_ema"], "needs a moving average; set for instance adapter.ema.decay=0.9"),
        (["keep_best=joint_success", "evaluation.every=0"], "needs evaluations; set evaluation.every"),
    ],
)
def test_figures_that_cannot_choose_are_refused(
    overrides: list[str], line: str, make_config: Callable[..., RunConfig]
):
    with pytest.raises(ConfigError, match=re.escape(line)):
        make_config("evaluation.every=1", *overrides)
