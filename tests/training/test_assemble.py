import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.errors import InputError, UsageError
from customized_grpo.policies import load_policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.access import RunDirectoryError
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training import assemble as assembling
from customized_grpo.training.assemble import assemble, load_metrics, load_rewards
from customized_grpo.training.samples import load_samples

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Ten prompts of each of three subjects."""
    entries = []
    for subject, colour in (("cat", "red"), ("dog", "green"), ("cup", "blue")):
        file = tmp_path / subject / "00.png"
        file.parent.mkdir()
        Image.new("RGB", (40, 30), colour).save(file)
        entries += [{"prompt": f"a {subject}, {n}", "image_paths": [f"{subject}/00.png"]} for n in range(10)]
    file = tmp_path / "list.json"
    file.write_text(json.dumps(entries))
    return file


def test_critters_differ_by_seed_and_held_out_cases_do_not(make_config: MakeConfig):
    def ids(samples: list[Sample]) -> list[str]:
        return [f"{sample.subject}/{sample.prompt}" for sample in samples]

    train, held_out = load_samples(make_config("data.train_samples=20", "data.held_out_samples=7"))
    assert (len(train), len(held_out)) == (20, 7)
    assert not {s.subject for s in train} & {s.subject for s in held_out}
    other_train, other_held_out = load_samples(make_config("seed=1", "data.held_out_samples=7"))
    assert ids(other_held_out) == ids(held_out)
    assert not set(ids(other_train)) & set(ids(train))


def test_a_list_is_divided_by_subject(make_config: MakeConfig, listed: Path):
    settings = (f"data.source={listed}", "data.train_samples=null", "data.held_out_share=.4")
    train, held_out = load_samples(make_config(*settings, "data.held_out_samples=3"))
    (kept,) = {sample.subject for sample in held_out}
    assert kept not in {sample.subject for sample in train}
    assert len(train) == 20
    assert len({s.prompt for s in held_out}) == 3
    few = load_samples(make_config(*settings, "data.train_samples=4"))[0]
    assert sorted(Counter(sample.subject for sample in few).values()) == [2, 2]


def test_missing_samples_and_an_existing_folder_are_refused_before_a_model_is_loaded(
    make_config: MakeConfig, listed: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(assembling, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    nothing_held_out = [f"data.source={listed}", "data.held_out_share=0"]
    with pytest.raises(ConfigError, match=r"no held-out sample .* evaluation\.every=0"):
        assemble(make_config(*nothing_held_out, "evaluation.every=1"))
    run = Path(make_config().output)
    assert not run.exists()
    run.mkdir()
    (run / "config.yaml").touch()
    with pytest.raises(RunDirectoryError, match="exists"):
        assemble(make_config())


@pytest.mark.parametrize(
    ("setting", "lacking", "instead"),
    [
        ("rewards.identity.against=other_view", "other view of the subject", "against=reference"),
        ("rewards.identity.region=mask", "mask of the subject", "region=frame"),
    ],
)
def test_data_that_a_reward_cannot_use_are_refused_before_a_model_is_loaded(
    make_config: MakeConfig, listed: Path, monkeypatch: pytest.MonkeyPatch, setting: str, lacking: str, instead: str
):
    monkeypatch.setattr(assembling, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    config = make_config(f"data.source={listed}", "data.held_out_share=0", setting, "data.train_samples=null")
    with pytest.raises(ConfigError, match=f"rewards.identity cannot score 30 of 30 .* have no {lacking}; .*{instead}"):
        assemble(config)
    assert not Path(config.output).exists()


def test_the_best_adapter_cannot_be_chosen_by_what_no_sample_has(make_config: MakeConfig, listed: Path):
    metric = "dino region=mask"
    settings = (f"data.source={listed}", f"evaluation.metrics=[{metric}]", f"keep_best={metric}", "evaluation.every=1")
    with pytest.raises(ConfigError, match=f"keep_best: {metric} can score no held-out sample: they have no mask of"):
        assemble(make_config(*settings, "data.train_samples=null", "data.held_out_share=.5"))


def test_a_few_samples_that_a_reward_cannot_score_are_allowed(
    make_config: MakeConfig, listed: Path, monkeypatch: pytest.MonkeyPatch
):
    """As many as `max_unscored` allows."""
    entries = json.loads(listed.read_text())
    for number, entry in enumerate(entries):
        entry["other_views"] = entry["image_paths"] if number % 3 else []
    listed.write_text(json.dumps(entries))
    settings = (f"data.source={listed}", "data.held_out_share=0", "data.train_samples=null")
    views = "rewards.identity.against=other_view"
    assert assemble(make_config(*settings, views, "max_unscored=.4")).samples
    monkeypatch.setattr(assembling, "load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match="cannot score 10 of 30"):
        assemble(make_config(*settings, views, "max_unscored=.3", f"output={listed.parent / 'other'}"))


def test_training_without_held_out_samples_and_without_evaluation(make_config: MakeConfig, listed: Path):
    trainer = assemble(make_config(f"data.source={listed}", "data.held_out_share=0"))
    trainer.train()
    assert not (trainer.directory.path / "evaluations.jsonl").exists()


def test_metrics_use_the_encoder_of_the_reward_of_their_kind(make_config: MakeConfig):
    config = make_config(
        f"rewards.identity.model={FOLDER / 'dino'}",
        f"rewards.prompt.model={FOLDER / 'clip'}",
        "evaluation.metrics=[clip_t, copy_paste]",
    )
    metrics = load_metrics(config, load_rewards(config))
    assert list(metrics) == ["identity_reward", "prompt_reward", "clip_t", "copy_paste"]
    _, samples = load_samples(config)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(metrics["clip_t"](images, samples), metrics["prompt_reward"](images, samples))


def test_a_metric_equal_to_a_trained_reward_shares_its_model(make_config: MakeConfig):
    """HPSv3 takes 15.5 GB. Remote rewards are not shared: each counts the images that it could not score."""
    remote = "rewards.taste={name: http, url: 'http://localhost:9/score', role: quality, weight: 0.2}"
    metrics = "[dino, clip_t batch=2, dino against=other_view, http url=http://localhost:9/score]"
    config = make_config(remote, "rewards.prompt.batch=2", f"evaluation.metrics={metrics}")
    rewards = load_rewards(config)
    found = load_metrics(config, rewards)
    assert found["dino"] is rewards["identity"]
    assert found["clip_t batch=2"] is rewards["prompt"]
    assert found["dino against=other_view"] not in rewards.values()
    assert found["http url=http://localhost:9/score"] not in rewards.values()


def test_identity_may_be_compared_with_another_view(make_config: MakeConfig):
    reference, view = (
        load_rewards(make_config(f"rewards.identity.against={against}"))["identity"]
        for against in ("reference", "other_view")
    )
    _, samples = load_samples(make_config())

    def as_images(pictures: list[Image.Image]) -> Tensor:
        pixels = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).reshape(32, 32, 3) for p in pictures]
        return torch.stack(pixels).permute(0, 3, 1, 2) / 255

    copies = as_images([sample.reference_images()[0] for sample in samples])
    views = as_images([sample.other_view_images()[0] for sample in samples])
    torch.testing.assert_close(reference(copies, samples), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(view(views, samples), torch.ones(4), atol=1e-5, rtol=0)
    assert (view(copies, samples) < 0.99).all()


def test_only_training_leaves_the_weights_to_be_sharded(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    """`evaluate` and `probe` with a sharded run's settings do not shard, so the model must not stay on the CPU."""
    waits: list[bool] = []

    monkeypatch.setattr(FluxKontextPolicy, "__init__", lambda *_, shard: waits.append(shard))
    config = make_config("model.shard=true")
    load_policy(config.model, config.device)
    load_policy(config.model, config.device, shard=config.model.shard)
    assert waits == [False, True]


def test_sampling_settings_are_those_of_training(make_config: MakeConfig):
    config = make_config("sampling.shift=checkpoint", "model.guidance=3.5", "model.width=48")
    assert asdict(SamplingSettings.of(config)) == {
        "num_steps": 4,
        "shift": "checkpoint",
        "guidance": 3.5,
        "height": 32,
        "width": 48,
        "max_sequence_length": 16,
    }


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("device=gpu", "no device is named 'gpu'; use cpu, cuda or cuda:1"),
        ("model.path=/not/here", "no model in /not/here; name a folder in the library's format, or a hub id"),
        ("model.path=./not/here", r"no model in \./not/here"),
        ("model.height=30", "32x30 pixels"),
        ("rewards.identity.model=/not/here", "no model in /not/here"),
        (
            "adapter.targets=[to_nothing]",
            "adapter.targets: 'to_nothing' matches no linear layer of this model; name",
        ),
        (
            "model.condition_cache=tests/conftest.py/x",
            "model.condition_cache .*conftest.py is a file; name another folder",
        ),
    ],
)
def test_unusable_settings_are_refused_before_a_folder_is_made(override: str, complaint: str, make_config: MakeConfig):
    config = make_config(override)
    with pytest.raises(InputError, match=complaint):
        assemble(config)
    assert not Path(config.output).exists()


def test_a_model_without_a_usable_schedule_is_refused_before_a_folder_is_made(make_config: MakeConfig, tmp_path: Path):
    shutil.copytree(FOLDER / "generator", tmp_path / "model")
    EulerDiscreteScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"))
    settings = (f"model.path={tmp_path / 'model'}", "model.dtype=float32", "model.height=32", "model.width=32")
    config = make_config(*settings, "sampling.shift=checkpoint")
    with pytest.raises(UsageError, match=r"scheduler is EulerDiscreteScheduler, .*; set sampling\.shift to a number"):
        assemble(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    "override",
    [
        "sampling.shift=1e30",  # in rounding, every sigma would be 1
        "sampling.shift=1e-300",
        "noise.level=1e-300",  # std 0 has no density
        "noise.level=1e300",
        "shaping.gamma=1e39",  # infinity times 0 would mask images as unscored
        "shaping.scale=1e39",
        "objective.clip_range=1e300",
        "rewards.look={name: clip_t, role: quality, weight: 1e39}",
    ],
)
def test_numbers_that_overflow_or_vanish_in_float32_are_refused(override: str, make_config: MakeConfig):
    with pytest.raises(ConfigError, match=r"input should be (less|greater) than or equal to"):
        make_config(override)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_refused_with_the_way_out(make_config: MakeConfig):
    with pytest.raises(ValueError, match=r"device cuda: .* finds no CUDA device; .*device=cpu"):
        load_policy(make_config().model, "cuda")
