"""An update of the trainer, and the figures. Gradients: test_optimise.py; the ratio: test_ratio.py."""

import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithm import SHAPING_RULES
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import RewardError, Scorer
from customized_grpo.training.rollout import Rollout
from customized_grpo.training.trainer import Trainer
from customized_grpo.training.watch import TrainingError
from runs import CALIBRATED

MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[[Policy], Tensor]


def rolled(trainer: Trainer, steps: Sequence[int] | None = None) -> Rollout:
    """The rollout of the trainer's next update."""
    samples = trainer.plan.batch(trainer.update)
    return trainer.sampler.rollout(
        trainer.policy,
        trainer.policy.encode(samples),
        trainer.config.groups.size,
        steps or trainer.plan.window(trainer.update),
        lambda group, member: trainer.plan.seed(trainer.update, group, member),
    )


def scoring(values: list[list[float]]) -> Reward:
    """A reward that returns these scores, group by group, for any images."""

    def score(images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG001
        return torch.tensor(values).flatten()

    return score


def optimised(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Rollout, Tensor, list[Sample], int]]:
    """The arguments of every call of `optimise`, which still runs."""
    calls, optimise = [], trainer.learner.optimise

    def recording(update: int, *args):
        calls.append(args)
        return optimise(update, *args)

    monkeypatch.setattr(trainer.learner, "optimise", recording)
    return calls


# --- an update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        *((rule, "constant") for rule in SHAPING_RULES),
        *((name, "tdw") for name, rule in SHAPING_RULES.items() if rule.uses_weights and not rule.static_weights),
    ],
)
def test_every_rule_trains_through_the_same_code(
    rule: str, kind: str, make_trainer: MakeTrainer, adapter_of: AdapterOf, monkeypatch: pytest.MonkeyPatch
):
    more = ["weighting.prompt=.6"] if kind == "constant" else []
    more += [CALIBRATED] if SHAPING_RULES[rule].uses_calibration else []
    trainer = make_trainer(f"shaping.rule={rule}", f"weighting.kind={kind}", *more)
    before, calls = adapter_of(trainer.policy), optimised(trainer, monkeypatch)
    row = trainer.step()
    ((_, advantages, *_),) = calls
    assert advantages.shape == (6, 2)
    assert row["advantage_std"] == pytest.approx(advantages.std().item())
    after = adapter_of(trainer.policy)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)


def test_advantages_at_true_steps_are_those_of_the_paper(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    """By hand: A_t = w_t A_p + (1 - w_t) A_i + b, w_t of steps 6 and 7 of 10, where TDW has fallen to .307 and .301.

    Prompt scores 0 1 2: A_p = -1 0 1. Identity 5 4 0: mean 3, deviations 2 1 -3, std sqrt(7).
    """
    trainer = make_trainer(
        *("sampling.num_steps=10", "window.strategy=fixed", "window.start=6", "window.last=8"),
        *("groups.prompts=1", "shaping.gamma=.4"),
    )
    trainer.rewards.update({"prompt": scoring([[0.0, 1.0, 2.0]]), "identity": scoring([[5.0, 4.0, 0.0]])})
    calls = optimised(trainer, monkeypatch)
    row = trainer.step()
    ((rollout, advantages, *_),) = calls
    weights = [0.3 + 0.4 / (1 + math.exp(20 * (u - 0.4))) for u in (0.6, 0.7)]
    assert [point.step for point in rollout.trajectory] == [6, 7]
    assert [entry["step"] for entry in row["steps"]] == [6, 7]
    assert [entry["prompt_weight"] for entry in row["steps"]] == pytest.approx(weights)
    a_p, a_i = [-1.0, 0.0, 1.0], [2 / 7**0.5, 1 / 7**0.5, -3 / 7**0.5]
    for t, w in enumerate(weights):
        for g, (p, i) in enumerate(zip(a_p, a_i, strict=True)):
            bonus = 0.4 * math.copysign(1, max(p, i)) * math.tanh(p * i)
            assert advantages[g, t].item() == pytest.approx(w * p + (1 - w) * i + bonus, abs=1e-5)


def test_rows_hold_the_weights_of_the_steps_in_the_window(make_trainer: MakeTrainer):
    trainer = make_trainer("sampling.num_steps=10", "window.last=8", "objective.step_scale=equal")
    seen = {}
    for update in range(4):
        row = trainer.step()
        assert row["update"] == update + 1
        assert [entry["step"] for entry in row["steps"]] == list(trainer.plan.window(update))
        seen |= {entry["step"]: entry for entry in row["steps"]}
    assert len(seen) > 3
    for step, entry in seen.items():
        u = step / 10
        fallen = 0.3 + 0.4 / (1 + math.exp(20 * (u - 0.4)))
        # T = 10: steps 0 to 2 hold .7; .88 is never reached.
        assert entry["prompt_weight"] == pytest.approx(0.7 if u < 0.24 else fallen, abs=1e-9)
        pull = trainer.plan.pull([step]).item()
        weight = entry["prompt_weight"]
        assert (entry["prompt_pull"], entry["identity_pull"]) == (weight * pull, (1 - weight) * pull)


def test_a_row_holds_figures_of_the_rewards(make_trainer: MakeTrainer):
    trainer = make_trainer()
    # Group 1: prompt and identity opposed. Group 2: identity flat.
    trainer.rewards["prompt"] = scoring([[0.0, 1.0, 2.0], [1.0, 2.0, 6.0]])
    trainer.rewards["identity"] = scoring([[2.0, 1.0, 0.0], [3.0, 3.0, 3.0]])
    row = trainer.step()
    assert row["reward_prompt"] == pytest.approx(2.0)
    assert row["reward_identity"] == pytest.approx(2.0)
    assert row["reward_identity_std"] == pytest.approx(math.sqrt(8 / 5))  # 2 1 0 3 3 3 around 2
    assert (row["flat_groups"], row["unscored"]) == (1, 0)
    # In the group that is not flat: good at one, at neither (advantage 0 is not good), at the other.
    assert (row["both_good"], row["conflict"], row["both_bad"]) == pytest.approx((0, 2 / 3, 1 / 3))
    assert row["correlation"] == pytest.approx(-1)
    assert row["conflict_excess"] == pytest.approx(2 / 3 - 0.5)
    assert row["lr"] == trainer.config.optimizer.lr
    assert set(row["seconds"]) == {"rollout", "reward", "update"}
    assert all(value > 0 for value in row["seconds"].values())
    json.dumps(row)


def test_rewards_get_every_image_with_its_own_sample(make_trainer: MakeTrainer):
    trainer, seen = make_trainer(), {}

    def watching(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        seen["images"], seen["ids"] = images, [sample.id for sample in samples]
        return torch.arange(6.0)

    trainer.rewards["identity"] = watching
    images, (first, second) = rolled(trainer).images, trainer.plan.batch(0)
    trainer.step()
    assert seen["ids"] == [first.id] * 3 + [second.id] * 3
    assert torch.equal(seen["images"], images)


def test_remote_rewards_score_batch_by_batch_and_scores_keep_their_order(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    """Two images a batch, so that scores come from three requests."""
    trainer, asked = make_trainer("groups.rollout_batch=2"), []

    class Remote:
        remote = True

        def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
            asked.append([sample.id for sample in samples])
            return images.mean(dim=(1, 2, 3))

    trainer.scorer = Scorer({**trainer.rewards, "identity": Remote()})
    kept: dict[str, Tensor] = {}
    finish = trainer.scorer.finish

    def keeping(images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        scores = finish(images, samples)
        kept.update(scores, images=images)
        return scores

    monkeypatch.setattr(trainer.scorer, "finish", keeping)
    trainer.step()
    first, second = trainer.plan.batch(0)
    assert sorted(asked) == sorted([[first.id] * 2, [first.id, second.id], [second.id] * 2])
    assert torch.allclose(kept["identity"], kept["images"].mean(dim=(1, 2, 3)))


def test_every_reward_enters_the_advantage_in_its_role(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    """Two identity rewards that disagree cancel; quality has its own weight."""
    trainer = make_trainer(
        *("groups.prompts=1", "shaping.rule=linear", "weighting.kind=constant", "weighting.prompt=.6"),
        "rewards.view={name: dino, against: other_view, role: identity}",
        "rewards.look={name: clip_t, role: quality, weight: .1}",
    )
    rising, falling = [[0.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]
    scores = {"prompt": rising, "identity": rising, "view": falling, "look": falling}
    trainer.rewards.update({key: scoring(values) for key, values in scores.items()})
    calls = optimised(trainer, monkeypatch)
    row = trainer.step()
    ((_, advantages, *_),) = calls
    assert advantages[:, 0].tolist() == pytest.approx([-0.5, 0, 0.5], abs=1e-6)
    assert {f"reward_{key}" for key in scores} <= set(row)


def test_an_exception_closes_the_remote_rewards(make_trainer: MakeTrainer):
    closed = []

    class Remote:
        remote = True

        def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG002
            raise KeyboardInterrupt

        def close(self) -> None:
            closed.append(True)

    trainer = make_trainer()
    trainer.scorer = Scorer({**trainer.rewards, "identity": Remote()})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert closed == [True]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], "reward 'identity' returned list"),
        (torch.zeros(5), r"reward 'identity' returned shape \(5,\) for 6 images"),
        (torch.tensor([math.inf] * 6), "reward 'identity' returned an infinity"),
    ],
)
def test_a_reward_that_breaks_its_contract_stops_the_run(scores: object, message: str, make_trainer: MakeTrainer):
    trainer = make_trainer()
    trainer.rewards["identity"] = lambda images, samples: scores  # noqa: ARG005  # pyright: ignore
    with pytest.raises(RewardError, match=message):
        trainer.step()


def test_a_run_stops_with_the_last_error_if_too_few_images_can_be_scored(make_trainer: MakeTrainer):
    class Down:
        last_error = "503 from http://judge: out of memory"

        def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG002
            return torch.tensor([math.nan] * 4 + [1.0, 2.0])

    trainer = make_trainer("max_unscored=.6")
    trainer.rewards["identity"] = Down()
    message = r"rewards.identity could not score 67% of 6 images.*0\.6: 503 from http://judge: out of memory"
    with pytest.raises(RewardError, match=message):
        trainer.step()
    assert trainer.learner.steps == 0


# --- images without score or signal ----------------------------------------------------------------------------------

SPREAD = [[0.0, 1.0, 2.0], [1.0, 2.0, 6.0]]


@pytest.mark.parametrize(
    ("identity", "unscored", "flat_groups", "trains"),
    [
        ([[0.0, math.nan, 1.0], [3.0, 1.0, 2.0]], 1, 0, True),
        ([[math.nan] * 3, [3.0, 1.0, 2.0]], 3, 1, True),
        ([[math.nan, math.nan, 1.0], [3.0, 1.0, 2.0]], 2, 1, True),  # one scored image has nothing to be compared with
        ([[math.nan] * 3] * 2, 6, 2, False),
        ([[5.0] * 3, [3.0, 1.0, 2.0]], 0, 1, True),
    ],
)
def test_unscored_images_are_skipped_and_the_rest_trains(
    identity: list[list[float]],
    unscored: int,
    flat_groups: int,
    trains: bool,
    make_trainer: MakeTrainer,
    adapter_of: AdapterOf,
):
    trainer = make_trainer("optimizer.weight_decay=0", "max_unscored=1")
    trainer.rewards.update({"prompt": scoring(SPREAD), "identity": scoring(identity)})
    before = adapter_of(trainer.policy)
    row = trainer.step()
    after = adapter_of(trainer.policy)
    assert (row["unscored"], row["flat_groups"]) == (unscored, flat_groups)
    assert torch.isfinite(after).all()
    assert torch.equal(after, before) is not trains
    assert trainer.learner.steps == int(trains)


def test_flat_groups_change_no_weight(make_trainer: MakeTrainer, adapter_of: AdapterOf):
    trainer = make_trainer()
    trainer.rewards.update({"prompt": scoring([[0.5] * 3] * 2), "identity": scoring([[0.5] * 3] * 2)})
    before = adapter_of(trainer.policy)
    row = trainer.step()
    assert row["flat_groups"] == 2
    assert row["gradient_norm"] == 0
    assert torch.equal(adapter_of(trainer.policy), before)
    trainer.rewards.update({"prompt": scoring(SPREAD), "identity": scoring(SPREAD)})
    trainer.step()  # and the next update trains
    assert not torch.equal(adapter_of(trainer.policy), before)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_sample(make_trainer: MakeTrainer):
    trainer = make_trainer("optimizer.lr=1e12", "objective.updates_per_rollout=2", "groups.prompts=1")
    (sample,) = trainer.plan.batch(0)
    step = trainer.plan.window(0)[0]
    with pytest.raises(TrainingError) as caught:
        trainer.step()
    assert f"not finite at update 1, denoising step {step}, samples {sample.id};" in str(caught.value)
    assert "lower optimizer.lr" in str(caught.value)
