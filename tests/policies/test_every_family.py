"""What every model family must keep, on tiny checkpoints in its real format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxKontextPipeline, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor

import tiny_models
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample, fit
from customized_grpo.errors import UsageError
from customized_grpo.policies import load_policy
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.sections import Model
from customized_grpo.training.assemble import assemble
from customized_grpo.training.rollout import generate
from processes import in_processes

HEIGHT, WIDTH, STEPS, SEED = 48, 64, 3, 7
MakeConfig = Callable[..., RunConfig]


@dataclass(frozen=True)
class Family:
    """A checkpoint, the settings to run it with, and its diffusers pipeline; UNO has none."""

    name: str
    path: Path
    settings: dict[str, Any]
    pipeline: Any

    def model(self, **further: Any) -> Model:
        size = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": 64, "dtype": "float32"}
        return Model(path=str(self.path), **(size | self.settings | further))

    def policy(self, **further: Any) -> DiffusersPolicy:
        policy = load_policy(self.model(**further), "cpu")
        assert isinstance(policy, DiffusersPolicy)
        return policy

    def plain_pipeline(self) -> Any:
        absent = {"processor": None} if self.name.startswith("qwen") else {}
        return self.pipeline.from_pretrained(self.path, **absent)

    @property
    def overrides(self) -> list[str]:
        """Of a configuration: this model, with pictures of the built-in world's size."""
        own = [f"model.{name}={value}" for name, value in self.settings.items()]
        return [f"model.path={self.path}", "device=cpu", "model.max_sequence_length=48", *own]


FAMILIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "kontext": ("guided", {}, FluxKontextPipeline),
    "klein": ("klein", {}, Flux2KleinPipeline),
    "klein-unguided": ("klein", {"guidance": 1.0}, Flux2KleinPipeline),
    "klein-distilled": ("distilled", {}, Flux2KleinPipeline),
    "qwen": ("qwen", {"reference_size": 96}, QwenImageEditPlusPipeline),
    "qwen-unguided": ("qwen", {"reference_size": 96, "guidance": 1.0}, QwenImageEditPlusPipeline),
    "qwen-2511": ("qwen-2511", {"reference_size": 96}, QwenImageEditPlusPipeline),
    "uno": ("flux-dev", {"family": "uno", "reference_size": 64}, None),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, guided_checkpoint: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        "guided": guided_checkpoint,
        "klein": tiny_models.saved(tiny_models.klein(), folder / "klein"),
        "distilled": tiny_models.saved(tiny_models.klein(distilled=True), folder / "distilled"),
        "qwen": tiny_models.saved(tiny_models.qwen_edit(), folder / "qwen"),
        "qwen-2511": tiny_models.saved(tiny_models.qwen_edit(newer=True), folder / "qwen-2511"),
        "flux-dev": tiny_models.saved(tiny_models.flux_dev(), folder / "flux-dev"),
    }


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Family:
    checkpoint, settings, pipeline = FAMILIES[request.param]
    monkeypatch.setattr(
        pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 96 * 96
    )  # as model.reference_size; 1024 is slow
    return Family(request.param, checkpoints[checkpoint], settings, pipeline)


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colours: what a VAE and a resizer treat as they treat photographs."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def mixed() -> list[Sample]:
    """Samples with one, two, one and three references, of several sizes, and prompts of several lengths."""
    sizes = [[(64, 64)], [(64, 96), (80, 72)], [(96, 64)], [(64, 64), (64, 80), (66, 70)]]
    prompts = ("a dog", "a dog in a police outfit, on a beach", "a cat", "a red teapot")
    return [
        Sample(f"s{n}", f"s{n}", prompts[n], tuple(picture(*size, 10 * n + k) for k, size in enumerate(each)))
        for n, each in enumerate(sizes)
    ]


def ours(policy: DiffusersPolicy, sample: Sample) -> Tensor:
    return generate(policy, policy.encode([sample]), policy.sigmas(STEPS, "checkpoint"), [SEED])


def plain(family: Family, pipe: Any, policy: DiffusersPolicy, sample: Sample) -> Tensor:
    """The picture from the family's own pipeline, with the prompt, references, guidance and schedule of `ours`."""
    pipe.set_progress_bar_config(disable=True)
    references = sample.reference_images()
    settings: dict[str, Any] = {"image": references}
    if family.name.startswith("qwen"):
        pipe.processor = policy.pipe.processor  # its own needs torchvision
        settings |= {"true_cfg_scale": policy.guidance, "negative_prompt": None if policy.guidance == 1 else " "}
    else:
        settings |= {"guidance_scale": policy.guidance, "max_sequence_length": 64}
    if family.name == "kontext":
        settings |= {"image": references[0], "max_area": HEIGHT * WIDTH, "_auto_resize": False}
    pictures = pipe(
        prompt=sample.prompt,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
        return_dict=False,
        **settings,
    )[0]
    return torch.as_tensor(pictures)


def as_the_pipeline_takes_it(family: Family, samples: list[Sample]) -> Sample:
    """A sample with two references; with one in the picture's size for Kontext, whose pipeline takes no more."""
    if family.name != "kontext":
        return samples[1]
    return replace(samples[1], id="one", references=(fit(samples[1].reference_images()[0], WIDTH, HEIGHT),))


def test_pictures_equal_those_of_the_pipeline_bit_for_bit(family: Family, mixed: list[Sample]):
    if family.pipeline is None:
        pytest.skip("no pipeline of diffusers; see test_uno.py")
    policy, sample = family.policy(), as_the_pipeline_takes_it(family, mixed)
    expected = plain(family, family.plain_pipeline(), policy, sample)
    assert expected.shape == (1, 3, HEIGHT, WIDTH)
    assert expected.std() > 0.01
    assert torch.equal(ours(policy, sample), expected)


def test_each_sample_of_a_mixed_batch_gets_what_it_gets_alone(family: Family, mixed: list[Sample]):
    policy = family.policy()
    condition = policy.encode(mixed).repeat(2)
    latents = policy.noise(condition, range(8))
    sigmas = torch.linspace(0.9, 0.2, 8)
    with torch.no_grad():
        together = policy.velocity(latents, sigmas, condition)
        for row in range(8):
            alone = policy.velocity(latents[row : row + 1], sigmas[row], policy.encode([mixed[row // 2]]))
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_references_and_prompts_matter(family: Family, mixed: list[Sample]):
    policy, sample = family.policy(), mixed[1]
    others = [
        replace(sample, id="prompt", prompt="a cat"),
        replace(sample, id="one", references=sample.references[:1]),
        replace(sample, id="order", references=sample.references[::-1]),
        replace(sample, id="other", references=(sample.references[0], picture(80, 72, 99))),
    ]
    latents = policy.noise(policy.encode([sample]), [SEED])
    with torch.no_grad():
        first, *changed = [policy.velocity(latents, 0.6, policy.encode([each])) for each in (sample, *others)]
    for other, velocity in zip(others, changed, strict=True):
        assert (velocity - first).abs().max() > 1e-4, other.id


def test_another_size_is_as_if_the_model_had_it(family: Family, mixed: list[Sample]):
    policy, large = family.policy(), family.policy(height=64, width=96)
    usual = ours(policy, mixed[1])
    with policy.sized(64, 96):
        picture = ours(policy, mixed[1])
    assert picture.shape == (1, 3, 64, 96)
    assert torch.equal(picture, ours(large, mixed[1]))
    assert torch.equal(ours(policy, mixed[1]), usual)
    with (
        pytest.raises(UsageError, match="pictures of 96x63 pixels; this model needs multiples of"),
        policy.sized(63, 96),
    ):
        pass


def test_half_precision_does_not_round_the_time(family: Family, mixed: list[Sample]):
    policy = family.policy(dtype="bfloat16")
    condition = policy.encode(mixed[:1])
    latents = policy.noise(condition, [1])
    with torch.no_grad():
        first, second = (policy.velocity(latents, sigma, condition) for sigma in (0.61287, 0.612))
    assert not torch.equal(first, second)


def test_checkpointing_gives_the_same_gradient(family: Family, mixed: list[Sample]):
    def gradient(*, checkpointing: bool) -> Tensor:
        policy = family.policy(gradient_checkpointing=checkpointing)
        policy.add_adapter(2, 4.0)
        excite(policy)
        condition = policy.encode(mixed)
        loss = policy.velocity(policy.noise(condition, range(4)), 0.6, condition).square().mean()
        weights = [*policy.trainable_parameters().values()]
        # Qwen's last block computes a text that nothing reads.
        gradients = torch.autograd.grad(loss, weights, allow_unused=family.name.startswith("qwen"))
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    whole = gradient(checkpointing=False)
    assert whole.norm() > 0
    torch.testing.assert_close(gradient(checkpointing=True), whole, atol=1e-6, rtol=1e-5)


def excite(policy: DiffusersPolicy) -> None:
    """Give a new adapter weights that change the pictures, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.trainable_parameters().items():
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("targets", ["attention", "attention_and_output", "all"])
def test_an_adapter_goes_through_plain_diffusers(family: Family, targets: str, mixed: list[Sample], tmp_path: Path):
    """With alpha != rank, which is easily lost."""
    policy, sample = family.policy(), as_the_pipeline_takes_it(family, mixed)
    policy.add_adapter(3, 7.0, targets)
    excite(policy)
    policy.save_adapter(tmp_path)
    picture = ours(policy, sample)
    with policy.base_policy():
        assert not torch.equal(ours(policy, sample), picture)
    again = family.policy()
    again.load_adapter(tmp_path)
    assert torch.equal(ours(again, sample), picture)
    if family.pipeline is None:
        return
    pipe = family.plain_pipeline()
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(plain(family, pipe, policy, sample), picture, atol=2e-6, rtol=0)


# --- training --------------------------------------------------------------------------------------------------------

ONE_OF_EACH_CLASS = pytest.mark.parametrize("family", ["kontext", "klein", "qwen", "uno"], indirect=True)


@pytest.fixture
def train(family: Family, make_config: MakeConfig, tmp_path: Path) -> Callable[..., Any]:
    def make(name: str, *more: str, resume: bool = False) -> Any:
        config = make_config(*family.overrides, f"output={tmp_path / name}", *more)
        return assemble(config, resume=resume)

    return make


def weights(trainer: Any) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.policy.trainable_parameters().values()])


def test_the_ratio_is_one_and_the_adapter_learns(train: Callable[..., Any]):
    trainer = train("run", "adapter.rank=2", "objective.kl=.1", "evaluation.every=1")
    before = weights(trainer)
    row = trainer.step()  # would raise if the ratio were not 1
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert row["gradient_norm"] > 0
    assert not torch.equal(weights(trainer), before)


@ONE_OF_EACH_CLASS
def test_a_resumed_run_equals_an_uninterrupted_one(train: Callable[..., Any]):
    straight = train("straight", "updates=2")
    straight.train()
    train("broken", "updates=1").train()
    resumed = train("broken", "updates=2", resume=True)
    resumed.train()
    assert torch.equal(weights(resumed), weights(straight))


@ONE_OF_EACH_CLASS
def test_two_processes_equal_one(train: Callable[..., Any], tmp_path: Path):
    singly = ("groups.rollout_batch=1", "groups.update_batch=1", "rewards.identity.batch=1", "rewards.prompt.batch=1")

    def run(name: str) -> None:
        trainer = train(name, *singly, "optimizer.max_grad_norm=1e9", "optimizer.lr=2")
        trainer.learner.optimizer = torch.optim.SGD(trainer.learner.parameters, lr=1.0)
        before = weights(trainer)
        trainer.step()
        torch.save((before, weights(trainer)), tmp_path / f"{name}-{trainer.processes.index}.pt")

    run("one")
    in_processes(2, lambda: run("two"), tmp_path)
    (start, one), (_, first), (_, second) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1")
    )
    assert (one - start).abs().max() > 1e-5
    assert ((one - first).norm() / (one - start).norm()).item() <= 1e-5
    assert torch.equal(first, second)
