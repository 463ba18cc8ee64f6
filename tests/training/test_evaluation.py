"""Held-out cases: generated as a user would generate them, at the updates that the configuration names."""

import json
import warnings
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.commands.generate import GenerationRequest
from customized_grpo.data.images import to_pictures
from customized_grpo.measure.evaluate import evaluate
from customized_grpo.measure.request import make_request
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training.advice import notices
from customized_grpo.training.rollout import derive_seed, generate
from customized_grpo.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


def test_evaluation_generates_held_out_cases_as_a_user_would(make_trainer: MakeTrainer):
    trainer = make_trainer("data.held_out_samples=3", "groups.rollout_batch=2")
    trained_on = {sample.subject for sample in trainer.samples}
    assert not trained_on & {sample.subject for sample in trainer.held_out.samples}
    images = trainer.held_out.evaluate(trainer.policy, trainer.sampler.sigmas).images
    assert len(images) == 3  # a batch of two and the remainder
    for image, sample in zip(images, trainer.held_out.samples, strict=True):
        policy, seed = trainer.policy, derive_seed("case", sample.id, 0)
        alone = generate(policy, policy.encode([sample]), trainer.sampler.sigmas, [seed])[0]
        torch.testing.assert_close(image, alone, atol=1e-5, rtol=0)


def test_evaluations_run_at_the_start_and_every_second_update(make_trainer: MakeTrainer):
    metrics = "evaluation.metrics=[oracle_prompt]"
    trainer = make_trainer("updates=3", "evaluation.every=2", metrics, "evaluation.grid=3")
    trainer.train()
    rows = [json.loads(line) for line in (trainer.directory.path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 2]
    names = {"identity_reward", "prompt_reward", "oracle_prompt"}
    assert all(row.keys() == {"update", *names, "spread", "scored"} for row in rows)
    assert all(row[part].keys() == names for row in rows for part in ("spread", "scored"))
    assert sorted(p.name for p in (trainer.directory.path / "images").iterdir()) == [
        *("eval-00000", "eval-00000.png", "eval-00002", "eval-00002.png"),
        *("reference-00.png", "reference-01.png", "reference-02.png"),
    ]
    assert rows[0]["prompt_reward"] != rows[1]["prompt_reward"]


def test_evaluations_take_the_steps_that_users_take(make_trainer: MakeTrainer):
    """More of them than training: `generate`, `evaluate` and sampling.json agree with the run's own evaluations."""
    trainer = make_trainer(
        "evaluation.num_steps=6", "evaluation.every=1", "evaluation.metrics=[]", "evaluation.grid=1"
    )
    trainer.train()
    folder, sample = trainer.directory.path, trainer.held_out.samples[0]
    adapter = folder / "adapter"
    assert SamplingSettings.read(adapter) == SamplingSettings(6, 3.0, 2.5, 32, 32, 16)
    seed = derive_seed("case", sample.id, 0)
    condition = trainer.policy.encode([sample])
    six, four = (generate(trainer.policy, condition, sigma_schedule(steps, 3.0), [seed]) for steps in (6, 4))
    saved = Image.open(folder / "images" / "eval-00001" / "00.png")
    assert to_pictures(six)[0].tobytes() == saved.tobytes()
    assert to_pictures(four)[0].tobytes() != saved.tobytes()
    reference = folder / "images" / "reference-00.png"
    request = GenerationRequest(
        references=[reference], prompts=["x"], seeds=[0], model=None, adapter=adapter, device="cpu"
    )
    assert request.settings().num_steps == 6
    assert make_request(str(folder), []).config.evaluation_steps == 6
    assert len(trainer.sampler.sigmas) == 4 + 1  # of training
    (notice,) = [each for each in notices(trainer.plan) if "evaluations with 6" in each]
    assert notice.startswith("training samples with 4 steps, evaluations with 6: the adapter is to be used with 6")


def test_evaluations_have_the_size_that_users_want(make_trainer: MakeTrainer):
    """Another one than in training: `generate`, `evaluate` and sampling.json agree with the run's own evaluations."""
    size = ("evaluation.height=40", "evaluation.width=48")
    trainer = make_trainer(*size, "evaluation.every=1", "evaluation.metrics=[]", "evaluation.grid=1")
    trainer.train()
    folder, sample = trainer.directory.path, trainer.held_out.samples[0]
    assert SamplingSettings.read(folder / "adapter") == SamplingSettings(4, 3.0, 2.5, 40, 48, 16)
    with trainer.policy.sized(40, 48):
        condition = trainer.policy.encode([sample])
        expected = generate(trainer.policy, condition, sigma_schedule(4, 3.0), [derive_seed("case", sample.id, 0)])
    saved = Image.open(folder / "images" / "eval-00001" / "00.png")
    assert saved.size == (48, 40)
    assert to_pictures(expected)[0].tobytes() == saved.tobytes()
    training = generate(trainer.policy, trainer.policy.encode([sample]), sigma_schedule(2, 3.0), [0])
    assert training.shape[2:] == (32, 32)
    request = make_request(str(folder), [], cases=1)
    evaluate(request, folder.parent / "evaluated")
    assert Image.open(next((folder.parent / "evaluated" / "images").glob("*.png"))).size == (48, 40)


def test_why_held_out_cases_have_no_score_is_said_once(make_trainer: MakeTrainer):
    metrics = "evaluation.metrics=[http url=http://localhost:1/score retries=0]"
    trainer = make_trainer("data.held_out_samples=1", metrics)
    sigmas = trainer.sampler.sigmas
    with pytest.warns(
        UserWarning, match=r"^http .* could not score some images: http://localhost:1/score: no answer: "
    ):
        trainer.held_out.evaluate(trainer.policy, sigmas)
    with warnings.catch_warnings(action="error"):
        assert trainer.held_out.evaluate(trainer.policy, sigmas).scores.popitem()[1].isnan().all()
