import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FluxKontextPipeline
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample, fit
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.rollout import Sampler, generate

MakePolicy = Callable[..., FluxKontextPolicy]
SEED = 7


def resized(sample: Sample, width: int, height: int) -> Sample:
    """The sample with its reference already in the model's size, because a plain pipeline does not crop."""
    picture = fit(sample.reference_images()[0], width, height)
    return Sample(f"{sample.id}-{width}x{height}", sample.subject, sample.prompt, (picture,))


def through_diffusers(pipe: FluxKontextPipeline, sample: Sample, policy: FluxKontextPolicy, steps: int) -> Tensor:
    """The image from the plain diffusers pipeline."""
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        image=sample.reference_images()[0],
        prompt=sample.prompt,
        height=policy.height,
        width=policy.width,
        max_area=policy.height * policy.width,
        _auto_resize=False,
        num_inference_steps=steps,
        guidance_scale=policy.guidance,
        max_sequence_length=policy.encoder.max_sequence_length,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
        return_dict=False,
    )[0]
    return torch.as_tensor(images)


def ours(policy: FluxKontextPolicy, sample: Sample, steps: int) -> Tensor:
    return generate(policy, policy.encode([sample]), policy.sigmas(steps, "checkpoint"), [SEED])


@pytest.mark.parametrize(
    ("path", "width", "height", "steps"),
    [
        ("critters", 32, 32, 10),
        ("critters", 48, 32, 5),
        ("guided", 32, 32, 7),  # embedded guidance, dynamic shift
        ("guided", 32, 64, 4),  # the shift depends on the size
    ],
)
def test_images_equal_those_of_the_pipeline_bit_for_bit(
    path: str,
    width: int,
    height: int,
    steps: int,
    samples: list[Sample],
    make_policy: MakePolicy,
    guided_checkpoint: Path,
):
    checkpoint = guided_checkpoint if path == "guided" else resolve(path, "generator")
    policy = make_policy(checkpoint, width=width, height=height)
    sample = resized(samples[0], width, height)
    plain = FluxKontextPipeline.from_pretrained(checkpoint)
    expected = through_diffusers(plain, sample, policy, steps)
    assert expected.shape == (1, 3, height, width)
    assert torch.equal(ours(policy, sample, steps), expected)


@pytest.mark.parametrize("dynamics", ["dance", "flow"])
def test_stochastic_steps_at_noise_level_zero_equal_the_pipeline_bit_for_bit(
    dynamics: str, samples: list[Sample], make_policy: MakePolicy
):
    """With the function that samples and replays, on every step."""
    policy, sample, steps = make_policy(), samples[0], 6
    condition, sigmas = policy.encode([sample]), policy.sigmas(steps, "checkpoint")
    sampler = Sampler(sigmas, dynamics, 0.0, batch=1)  # pyright: ignore[reportArgumentType]
    latents = policy.noise(condition, [SEED])
    with torch.no_grad():
        for step in range(steps):
            latents, std = sampler.distribution(policy, latents, condition, *sigmas[step : step + 2].tolist())
            assert std == 0
    expected = through_diffusers(policy.pipe, sample, policy, steps)
    assert torch.equal(policy.decode(latents, condition), expected)


def test_guidance_changes_the_images_of_a_guided_model(
    samples: list[Sample], make_policy: MakePolicy, guided_checkpoint: Path
):
    low, high = (ours(make_policy(guided_checkpoint, guidance=g), samples[0], 3) for g in (1.0, 5.0))
    assert not torch.equal(low, high)


def test_an_image_depends_on_its_seed_and_not_on_its_batch(samples: list[Sample], make_policy: MakePolicy):
    policy = make_policy()
    sigmas, seeds = policy.sigmas(6, 3.0), [1, 2, 3]
    together = generate(policy, policy.encode(samples[:3]), sigmas, seeds)
    for image, sample, seed in zip(together, samples, seeds, strict=False):
        alone = generate(policy, policy.encode([sample]), sigmas, [seed])[0]
        torch.testing.assert_close(image, alone, atol=1e-5, rtol=0)
    other = generate(policy, policy.encode(samples[:1]), sigmas, [2])[0]
    assert (together[0] - other).abs().max() > 0.01


def test_noise_needs_one_seed_per_image(samples: list[Sample], make_policy: MakePolicy):
    policy = make_policy()
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        policy.noise(policy.encode(samples[:3]), [1, 2])


def test_an_encoded_entry_does_not_depend_on_its_neighbours(samples: list[Sample], make_policy: MakePolicy):
    before = torch.get_rng_state()
    together = make_policy().encode(samples[:3])
    assert torch.equal(torch.get_rng_state(), before)  # or a resumed run would draw different numbers
    alone = make_policy().encode(samples[1:2])
    for name in ("text", "pooled", "reference"):
        assert torch.equal(together.entries[1].tensors[name], alone.entries[0].tensors[name])


def test_half_precision_does_not_round_the_time(samples: list[Sample], make_policy: MakePolicy):
    """diffusers alone would round it to bfloat16, where 612.87, 612 and 613.75 thousandths are equal."""
    policy = make_policy(dtype="bfloat16")
    condition = policy.encode(samples[:1])
    latents, times = policy.noise(condition, [1]), []
    policy.module.time_text_embed.register_forward_hook(lambda _module, inputs, _output: times.append(inputs[0]))
    with torch.no_grad():
        first, second = (policy.velocity(latents, sigma, condition) for sigma in (0.61287, 0.612))
    assert torch.equal(torch.cat(times), torch.tensor([0.61287, 0.612]) * 1000 / 1000 * 1000)
    assert not torch.equal(first, second)
    assert not policy.module.time_text_embed._forward_pre_hooks


def test_time_is_exact_and_may_differ_within_a_batch(samples: list[Sample], make_policy: MakePolicy):
    policy = make_policy()
    condition = policy.encode(samples[:2])
    latents = policy.noise(condition, [1, 2])
    with torch.no_grad():
        exact = policy.velocity(latents, 0.61287, condition)
        truncated = policy.velocity(latents, 0.612, condition)
        mixed = policy.velocity(latents, torch.tensor([0.61287, 0.612]), condition)
    assert exact.shape == latents.shape
    assert not torch.equal(exact, truncated)
    torch.testing.assert_close(mixed[0], exact[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[1], truncated[1], atol=1e-5, rtol=0)


def test_the_size_must_be_a_multiple_of_the_patches(make_policy: MakePolicy):
    with pytest.raises(UsageError, match="32x30 pixels; this model needs multiples of 4"):
        make_policy(height=30)


def checkpoint_grid(policy: FluxKontextPolicy, num_steps: int, scheduler: object) -> Tensor:
    policy.pipe.scheduler = scheduler
    return policy.sigmas(num_steps, "checkpoint")


def test_a_checkpoints_grid_starts_at_one_for_shifts_where_diffusers_exceeds_it(make_policy: MakePolicy):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=0.09)
    scheduler.set_timesteps(25)
    assert torch.as_tensor(scheduler.sigmas)[0] > 1  # by rounding; no step may start there
    sigmas = checkpoint_grid(make_policy(), 25, scheduler)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1, 0, 26)
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            FlowMatchHeunDiscreteScheduler(),
            "scheduler is FlowMatchHeunDiscreteScheduler, which is not supported",
        ),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "schedule does not fall from 1 to 0 in 25 steps"),
        (
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=80.0, max_shift=80.0),
            "schedule does not fall from 1 to 0 in 25 steps",
        ),
    ],
)
def test_a_checkpoint_without_a_usable_schedule_is_refused(scheduler: object, message: str, make_policy: MakePolicy):
    with pytest.raises(UsageError, match=f"{message}; set sampling.shift to a number, for instance 3"):
        checkpoint_grid(make_policy(), 25, scheduler)


# --- the adapter -----------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_trainable_and_in_float32(make_policy: MakePolicy):
    policy = make_policy(rank=3, targets=("to_q", "proj_mlp"), dtype="bfloat16")
    weights = policy.trainable_parameters()
    # Width 64: to_q of 1 double and 3 single blocks 64 -> 64, proj_mlp of 3 single blocks 64 -> 256.
    assert sum(w.numel() for w in weights.values()) == 3 * (4 * (64 + 64) + 3 * (64 + 256))
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert all("lora_" in name for name in weights)
    frozen = [w for w in policy.module.parameters() if not w.requires_grad]
    assert {w.dtype for w in frozen} == {torch.bfloat16}


def test_half_precision_still_steps_in_float32(samples: list[Sample], make_policy: MakePolicy):
    half, full = make_policy(dtype="bfloat16"), make_policy()
    latents = full.noise(full.encode(samples[:1]), [1])
    with torch.no_grad():
        rounded, exact = (p.velocity(latents, 0.6, p.encode(samples[:1])) for p in (half, full))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.05  # velocities are of size 1


def test_a_new_adapter_changes_nothing_and_depends_on_its_seed(
    samples: list[Sample], make_policy: MakePolicy, adapter_of: Callable[..., Tensor]
):
    before = torch.get_rng_state()
    one, same, other = (make_policy(rank=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)  # the global random state is not used
    assert torch.equal(adapter_of(one), adapter_of(same))
    assert not torch.equal(adapter_of(one), adapter_of(other))
    assert torch.equal(ours(one, samples[0], 3), ours(make_policy(), samples[0], 3))


def test_the_base_policy_is_the_model_without_adapter(
    samples: list[Sample], make_policy: MakePolicy, excite: Callable[..., None]
):
    policy, base = make_policy(rank=4), make_policy()
    excite(policy)
    condition = policy.encode(samples[:1])
    latents = policy.noise(condition, [1])

    def velocity(of: FluxKontextPolicy) -> Tensor:
        with torch.no_grad():
            return of.velocity(latents, 0.7, condition)

    tuned = velocity(policy)
    assert (tuned - velocity(base)).abs().max() > 0.01
    with policy.base_policy():
        assert torch.equal(velocity(policy), velocity(base))
    assert torch.equal(velocity(policy), tuned)
    with pytest.raises(ZeroDivisionError), policy.base_policy():
        _ = 1 / 0
    assert torch.equal(velocity(policy), tuned)


def test_the_gradient_reaches_every_weight_of_the_adapter_and_no_other(
    samples: list[Sample], make_policy: MakePolicy, excite: Callable[..., None]
):
    policy = make_policy(rank=2)
    excite(policy)
    condition = policy.encode(samples[:1])
    policy.velocity(policy.noise(condition, [1]), 0.7, condition).square().mean().backward()
    reached = {name for name, weight in policy.module.named_parameters() if weight.grad is not None}
    assert reached == set(policy.trainable_parameters())
    assert all(weight.grad.abs().max() > 0 for weight in policy.trainable_parameters().values())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("alpha", [2.0, 8.0])  # rank 4: diffusers forgets an alpha that is not saved with it
def test_plain_diffusers_loads_the_adapter(
    alpha: float, tmp_path: Path, samples: list[Sample], make_policy: MakePolicy, excite: Callable[..., None]
):
    policy = make_policy(rank=4, alpha=alpha)
    excite(policy)
    policy.save_adapter(tmp_path)
    plain = FluxKontextPipeline.from_pretrained(resolve("critters", "generator"))
    untuned = through_diffusers(plain, samples[0], policy, 4)
    plain.load_lora_weights(str(tmp_path))
    tuned = through_diffusers(plain, samples[0], policy, 4)
    assert torch.equal(ours(policy, samples[0], 4), tuned)
    assert (tuned - untuned).abs().max() > 0.05


def test_a_saved_adapter_is_loaded_unchanged(
    tmp_path: Path,
    samples: list[Sample],
    make_policy: MakePolicy,
    excite: Callable[..., None],
    adapter_of: Callable[..., Tensor],
):
    policy = make_policy(rank=4, alpha=8.0)
    excite(policy)
    policy.save_adapter(tmp_path / "one")
    over_another = make_policy(rank=4, alpha=8.0, seed=5)
    over_another.load_adapter(tmp_path / "one")
    assert torch.equal(adapter_of(over_another), adapter_of(policy))
    into_none = make_policy()
    into_none.load_adapter(tmp_path / "one")
    assert torch.equal(ours(into_none, samples[0], 3), ours(policy, samples[0], 3))
    over_another.save_adapter(tmp_path / "two")
    one, two = (load_file(tmp_path / folder / ADAPTER_FILE) for folder in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_that_is_missing_or_does_not_fit_is_refused(tmp_path: Path, make_policy: MakePolicy):
    policy = make_policy(rank=4, targets=("to_q",))
    with pytest.raises(ModelError, match=f"{ADAPTER_FILE} is missing"):
        policy.load_adapter(tmp_path)
    make_policy(rank=4, targets=("to_q", "to_k")).save_adapter(tmp_path)
    with pytest.raises(ModelError, match=r"does not fit this model: .*to_k.lora_A.weight is not part of this adapter"):
        policy.load_adapter(tmp_path)
    make_policy(rank=4, targets=("to_k",)).save_adapter(tmp_path)
    with pytest.raises(ModelError, match=r"does not fit this model: .*to_q.lora_A.weight is missing"):
        policy.load_adapter(tmp_path)


def test_an_adapter_that_cannot_be_opened_is_refused(
    tmp_path: Path, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    def denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / ADAPTER_FILE).touch()
    policy = make_policy()
    monkeypatch.setattr("safetensors.torch.load_file", denied)
    with pytest.raises(ModelError, match=r"cannot be read .*Permission denied.*; copy it again, or use an older"):
        policy.load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nope",), "'nope' matches no linear layer of this model"),
        (("to_q", "o_q"), "'o_q' matches no linear layer of this model"),  # peft would train to_q alone
        (("",), "'' matches no linear layer of this model"),
        (("norm1",), "'norm1' matches transformer_blocks.0.norm1, which is no linear layer"),
        ((), "adapter.targets is empty"),
    ],
)
def test_targets_that_name_no_linear_layer_are_refused(
    targets: tuple[str, ...], message: str, make_policy: MakePolicy
):
    with pytest.raises(UsageError, match=rf"{message}; name linear layers such as to_q, or set null for the usual"):
        make_policy(rank=4, targets=targets)


def test_a_target_may_be_the_full_name_of_a_layer(make_policy: MakePolicy):
    policy = make_policy(rank=4, targets=("transformer_blocks.0.attn.to_q", "norm.linear"))
    layers = {name.split(".lora_")[0] for name in policy.trainable_parameters()}
    assert "transformer_blocks.0.attn.to_q" in layers
    assert not any(name.startswith("single") and name.endswith("to_q") for name in layers)
