"""What a policy keeps in memory, and where: activation checkpointing, offloaded text encoders, half precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from customized_grpo.data import Sample
from customized_grpo.policies.flux_kontext import FluxKontextEncoder, FluxKontextPolicy
from customized_grpo.training.rollout import Rollout, Sampler
from customized_grpo.training.trainer import Trainer

MakePolicy = Callable[..., FluxKontextPolicy]
MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[..., Tensor]


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@contextmanager
def counted_blocks(module: nn.Module) -> Iterator[list[str]]:
    """The names of the transformer's blocks, in the order of their forward passes."""
    calls, hooks = [], []
    for name, block in module.named_modules():
        if name.rsplit(".", 1)[0] in ("transformer_blocks", "single_transformer_blocks"):
            hooks.append(block.register_forward_pre_hook(lambda *_, name=name: calls.append(name)))
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.fixture
def gradient(samples: list[Sample], excite: Callable[[FluxKontextPolicy], None]) -> Callable[..., Tensor]:
    """The gradient of a loss on two samples, for a policy with a non-zero adapter."""

    def of(policy: FluxKontextPolicy) -> Tensor:
        excite(policy)
        condition = policy.encode(samples[:2])
        loss = policy.velocity(policy.noise(condition, [1, 2]), 0.6, condition).square().mean()
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(policy.trainable_parameters().values()))]
        )

    return of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_gives_the_same_gradient(dtype: str, make_policy: MakePolicy, gradient: Callable[..., Tensor]):
    plain, checkpointed = (
        gradient(make_policy(rank=2, dtype=dtype, gradient_checkpointing=on)) for on in (False, True)
    )
    assert plain.abs().max() > 0
    torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-6)


def test_checkpointing_recomputes_every_block_in_the_update_and_only_there(
    samples: list[Sample], make_policy: MakePolicy, gradient: Callable[..., Tensor]
):
    for on, times in ((False, 1), (True, 2)):
        policy = make_policy(rank=2, gradient_checkpointing=on)
        assert not policy.module.training  # diffusers checkpoints in eval mode too
        with counted_blocks(policy.module) as calls:
            gradient(policy)
        blocks = set(calls)
        assert len(blocks) == policy.module.config.num_layers + policy.module.config.num_single_layers
        assert all(calls.count(name) == times for name in blocks)
        with counted_blocks(policy.module) as calls:
            condition = policy.encode(samples[:2])
            Sampler(policy.sigmas(3, 3.0), "flow", 0.8, 4).rollout(policy, condition, 2, (1,), lambda *_: 0)
        assert len(calls) == 3 * len(blocks)


def held(policy: FluxKontextPolicy, samples: list[Sample]) -> int:
    """Bytes of activations that the graph of two samples holds for the backward pass, without weights."""
    weights = {weight.data_ptr() for weight in policy.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    condition = policy.encode(samples[:2])
    latents = policy.noise(condition, [1, 2])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.velocity(latents, 0.6, condition)
    return sum(kept.values())


def test_checkpointing_holds_fewer_activations(samples: list[Sample], make_policy: MakePolicy):
    plain, checkpointed = (held(make_policy(rank=2, gradient_checkpointing=on), samples) for on in (False, True))
    assert 0 < checkpointed < plain / 4


def test_a_checkpointed_run_learns_what_a_plain_one_learns(
    tmp_path: Path, make_trainer: MakeTrainer, adapter_of: AdapterOf
):
    """With KL the base policy runs between forward and backward: blocks must be recomputed with the adapter on."""
    learnt = []
    for on in ("false", "true"):
        trainer = make_trainer(
            *(f"model.gradient_checkpointing={on}", f"output={tmp_path / on}", "objective.kl=1"),
            *("objective.updates_per_rollout=2", "optimizer.lr=1e-2", "sampling.num_steps=2", "window.size=1"),
            *("window.last=0", "groups.prompts=1", "groups.size=2", "adapter.rank=2"),
        )
        assert trainer.policy.module.is_gradient_checkpointing is (on == "true")  # pyright: ignore[reportCallIssue]
        trainer.step()
        learnt.append(adapter_of(trainer.policy))
    torch.testing.assert_close(learnt[1], learnt[0], atol=1e-6, rtol=0)


# --- text encoders on the CPU ----------------------------------------------------------------------------------------


def recorded(policy: FluxKontextPolicy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Moves and forward passes of the text encoders, in order."""
    events = []
    for name in FluxKontextEncoder.text_encoders:
        encoder = getattr(policy.pipe, name)
        to, forward = encoder.to, encoder.forward

        def moving(device: torch.device | str, name: str = name, to=to):
            events.append(f"{name} to {device}")
            return to(device)

        def encoding(*args, name: str = name, forward=forward, **kwargs):
            events.append(f"{name} encodes")
            return forward(*args, **kwargs)

        monkeypatch.setattr(encoder, "to", moving)
        monkeypatch.setattr(encoder, "forward", encoding)
    return events


def devices(policy: FluxKontextPolicy) -> dict[str, str]:
    return {
        name: next(getattr(policy.pipe, name).parameters()).device.type
        for name in ("transformer", "vae", *FluxKontextEncoder.text_encoders)
    }


def test_offloaded_text_encoders_stay_on_the_cpu_when_the_model_is_loaded(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("customized_grpo.policies.diffusers_policy.usable_device", torch.device)  # it refuses "meta"
    rest = {"transformer": "meta", "vae": "meta"}
    everything = make_policy(device="meta")
    offloaded = make_policy(device="meta", offload_text_encoders=True)
    assert devices(everything) == rest | dict.fromkeys(FluxKontextEncoder.text_encoders, "meta")
    assert devices(offloaded) == rest | dict.fromkeys(FluxKontextEncoder.text_encoders, "cpu")


def test_offloaded_text_encoders_are_on_the_device_only_while_prompts_are_encoded(
    samples: list[Sample], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
):
    # "cpu:0" is another name of the CPU, so that moves in both directions can be recorded without a GPU.
    policy = make_policy(device="cpu:0", offload_text_encoders=True)
    events = recorded(policy, monkeypatch)
    one, two = FluxKontextEncoder.text_encoders
    to_device, encode, to_cpu = ([f"{one} {does}", f"{two} {does}"] for does in ("to cpu:0", "encodes", "to cpu"))
    condition = policy.encode(samples[:3])
    assert events == to_device + 3 * encode + to_cpu  # moved once for the batch
    events.clear()
    policy.encode(samples[:3])
    assert events == []  # in memory: nothing to encode
    monkeypatch.setattr(policy.pipe.text_encoder_2, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.encode(samples[3:4])
    assert events == [*to_device, encode[0], *to_cpu]  # also after an error
    plain = make_policy()
    expected = recorded(plain, monkeypatch)
    for ours, theirs in zip(condition.entries, plain.encode(samples[:3]).entries, strict=True):
        assert torch.equal(ours.tensors["text"], theirs.tensors["text"])
        assert torch.equal(ours.tensors["pooled"], theirs.tensors["pooled"])
    assert expected == 3 * encode


# --- half precision --------------------------------------------------------------------------------------------------


def test_the_adapter_shares_the_inputs_of_its_layers(
    samples: list[Sample], make_policy: MakePolicy, gradient: Callable[..., Tensor], tmp_path: Path
):
    """peft would copy every input to float32, which autocast rounds back: the same bits, but more memory."""
    policy, saved = make_policy(rank=2, dtype="bfloat16"), tmp_path / "adapter"
    policy.save_adapter(saved)
    loaded = make_policy(dtype="bfloat16")
    loaded.load_adapter(saved)
    bytes_held, found = held(policy, samples), gradient(policy)
    layers = [layer for layer in policy.module.modules() if isinstance(layer, LoraLayer)]
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    assert not any(layer.cast_input_dtype_enabled for layer in loaded.module.modules() if isinstance(layer, LoraLayer))
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    assert held(policy, samples) > bytes_held
    assert torch.equal(gradient(policy), found)


def test_a_half_precision_base_trains_a_float32_adapter(
    make_trainer: MakeTrainer, adapter_of: AdapterOf, monkeypatch: pytest.MonkeyPatch
):
    trainer, rollouts = make_trainer("model.dtype=bfloat16"), []
    check = Trainer.check_ratio

    def keeping(self: Trainer, rollout: Rollout) -> None:
        rollouts.append(rollout)
        check(self, rollout)

    monkeypatch.setattr(Trainer, "check_ratio", keeping)
    before = adapter_of(trainer.policy)
    weights = trainer.policy.trainable_parameters()
    gradients: set[torch.dtype] = set()
    trainer.learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.update(w.grad.dtype for w in weights.values() if w.grad is not None)
    )
    row = trainer.step()
    after = adapter_of(trainer.policy)
    frozen = [w for w in trainer.policy.module.parameters() if not w.requires_grad]
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert {w.dtype for w in frozen} == {torch.bfloat16}
    assert gradients == {torch.float32}
    moments = [
        m for state in trainer.learner.optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])
    ]
    assert {m.dtype for m in moments} == {torch.float32}
    (rollout,) = rollouts
    for point in rollout.trajectory:
        assert {point.latents.dtype, point.next_latents.dtype, point.log_prob.dtype} == {torch.float32}
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
