"""Which layers get an adapter, by name, and the one matrix A that q, k and v of an attention share."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from diffusers import FluxKontextPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from customized_grpo.config import RunConfig
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.policies.lora import ADAPTER
from customized_grpo.run.access import RunDirectoryError
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from gradients import gradients_of
from processes import in_processes
from runs import SMALL, rows_of

MakePolicy = Callable[..., FluxKontextPolicy]
MakeTrainer = Callable[..., Trainer]
MakeConfig = Callable[..., RunConfig]

STREAMS = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")} | {
    f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
}
SINGLE = {f"attn.{name}" for name in ("to_q", "to_k", "to_v")}
FEED_FORWARD = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}


def adapted(policy: FluxKontextPolicy) -> set[str]:
    return {name for name, layer in policy.module.named_modules() if isinstance(layer, LoraLayer)}


def layers(double: set[str], single: set[str]) -> set[str]:
    """The built-in generator's layers: 1 double block, 3 single ones."""
    return {f"transformer_blocks.0.{name}" for name in double} | {
        f"single_transformer_blocks.{block}.{name}" for block in range(3) for name in single
    }


# --- named sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", layers(STREAMS, SINGLE)),
        ("attention_and_output", layers(STREAMS, SINGLE | {"proj_out"})),  # not the model's own last layer, proj_out
        ("all", layers(STREAMS | FEED_FORWARD, SINGLE | {"proj_mlp", "proj_out"}) | {"proj_out"}),
        (None, layers(STREAMS | FEED_FORWARD, SINGLE | {"proj_mlp", "proj_out"}) | {"proj_out"}),
        (("proj_mlp",), layers(set(), {"proj_mlp"})),
    ],
)
def test_a_named_set_is_these_layers(targets: object, expected: set[str], make_policy: MakePolicy):
    assert adapted(make_policy(rank=2, targets=targets)) == expected


# --- q, k and v share A ----------------------------------------------------------------------------------------------

SHARED = {"targets": "attention_and_output", "share_qkv": True}


def test_sharing_leaves_one_matrix_of_three(make_policy: MakePolicy):
    one, three = (make_policy(rank=3, targets="attention", share_qkv=share) for share in (True, False))
    counts = [sum(weight.numel() for weight in policy.trainable_parameters().values()) for policy in (one, three)]
    # A is 64 -> 3. The double block has two attentions' worth of q, k, v and each of 3 single blocks one: 5 in all.
    assert counts[1] - counts[0] == 5 * 2 * 3 * 64
    assert adapted(one) == adapted(three)


class Fused(nn.Module):
    """A frozen layer that makes q, k and v at once, with one LoRA on it, as FLUX's own code has it."""

    def __init__(self, base: Tensor, down: Tensor, up: Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.base.T + self.scale * (x @ self.down.T @ self.up.T)


def test_a_shared_matrix_is_a_lora_on_one_fused_layer(make_policy: MakePolicy, excite: Callable[..., None]):
    """The same function, the same gradient, by a hand-built fused layer: A of 64 -> 3, B of 3 -> 3 x 64."""
    policy = make_policy(rank=3, alpha=6.0, **SHARED)
    excite(policy)
    attention: Any = policy.module.transformer_blocks[0].attn  # Any: peft's layers
    parts = [attention.to_q, attention.to_k, attention.to_v]
    base = torch.cat([part.base_layer.weight for part in parts])
    bias = torch.cat([part.base_layer.bias for part in parts])
    down, ups = parts[0].lora_A[ADAPTER].weight, [part.lora_B[ADAPTER].weight for part in parts]
    fused = Fused(base, down.detach(), torch.cat([up.detach() for up in ups]), 6 / 3)
    torch.manual_seed(0)
    x, direction = torch.randn(5, 64), torch.randn(5, 3 * 64)
    ours = torch.cat([part(x) for part in parts], dim=1)
    torch.testing.assert_close(ours, fused(x) + bias, atol=1e-5, rtol=1e-5)
    (ours * direction).sum().backward()
    (fused(x) * direction).sum().backward()
    assert fused.down.grad is not None
    assert fused.up.grad is not None
    torch.testing.assert_close(down.grad, fused.down.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.cat([up.grad for up in ups]), fused.up.grad, atol=1e-4, rtol=1e-5)


def test_plain_diffusers_loads_a_shared_matrix(
    make_policy: MakePolicy, excite: Callable[..., None], samples: list[Sample], tmp_path: Path
):
    policy = make_policy(rank=4, alpha=8.0, **SHARED)
    excite(policy)
    policy.save_adapter(tmp_path)
    tensors = load_file(tmp_path / ADAPTER_FILE)
    names = [f"transformer.transformer_blocks.0.attn.{name}.lora_A.weight" for name in ("to_q", "to_k", "to_v")]
    assert torch.equal(tensors[names[0]], tensors[names[1]])
    assert torch.equal(tensors[names[0]], tensors[names[2]])
    plain = FluxKontextPipeline.from_pretrained(resolve("critters", "generator"))
    plain.load_lora_weights(str(tmp_path))
    ours, theirs = policy, make_policy()
    theirs.module = theirs.pipe.transformer = plain.transformer
    read = make_policy()  # as `generate` and `evaluate` read it: without share_qkv
    read.load_adapter(tmp_path)
    condition = ours.encode(samples[:1])
    with torch.no_grad():
        latents = ours.noise(condition, [1])
        expected = ours.velocity(latents, 0.6, condition)
        assert torch.equal(theirs.velocity(latents, 0.6, condition), expected)
        assert torch.equal(read.velocity(latents, 0.6, condition), expected)
        with ours.base_policy():
            assert (ours.velocity(latents, 0.6, condition) - expected).abs().max() > 0.01


def test_loading_into_a_shared_matrix_keeps_it_shared(
    make_policy: MakePolicy, excite: Callable[..., None], adapter_of: Callable[..., Tensor], tmp_path: Path
):
    policy, other = (make_policy(rank=4, seed=seed, **SHARED) for seed in (0, 1))
    excite(policy)
    policy.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert torch.equal(adapter_of(other), adapter_of(policy))
    attention: Any = other.module.single_transformer_blocks[2].attn
    assert attention.to_q.lora_A[ADAPTER].weight is attention.to_v.lora_A[ADAPTER].weight


def test_copies_that_differ_are_refused(make_policy: MakePolicy, tmp_path: Path):
    policy = make_policy(rank=4, **SHARED)
    policy.save_adapter(tmp_path)
    file = tmp_path / ADAPTER_FILE
    tensors = load_file(file)
    changed = "transformer.single_transformer_blocks.1.attn.to_v.lora_A.weight"
    save_file(tensors | {changed: tensors[changed] + 1e-3}, file)
    message = (
        "lora_A of to_q, to_k, to_v in single_transformer_blocks.1.attn differ, and adapter.share_qkv needs one for "
        "all three; set adapter.share_qkv as it was when it was trained"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        policy.load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("to_q", "to_v"), "transformer_blocks.0.attn has an adapter on to_q, to_v only, of to_q, to_k, to_v; name"),
        (("proj_mlp",), "no layer of adapter.targets is q, k or v; add them, or set adapter.share_qkv=false"),
    ],
)
def test_targets_that_cannot_share_are_refused(targets: tuple[str, ...], message: str, make_policy: MakePolicy):
    with pytest.raises(UsageError, match=re.escape(f"adapter.share_qkv: {message}")):
        make_policy(rank=2, targets=targets, share_qkv=True)


# --- a run with a shared matrix --------------------------------------------------------------------------------------

RUN = (*SMALL, "adapter.targets=attention_and_output", "adapter.share_qkv=true", "updates=3", "save_every=1")


def test_a_resumed_run_equals_an_uninterrupted_one(
    make_trainer: MakeTrainer, adapter_of: Callable[..., Tensor], tmp_path: Path
):
    whole = make_trainer(*RUN, f"output={tmp_path / 'whole'}")
    whole.train()
    make_trainer(*RUN, "updates=1").train()
    resumed = make_trainer(*RUN, resume=True)
    resumed.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    assert rows_of(resumed.directory.path) == rows_of(whole.directory.path)
    moments = [trainer.learner.optimizer.state_dict()["state"] for trainer in (resumed, whole)]
    assert len(moments[0]) == len(list(resumed.policy.trainable_parameters()))
    for one, other in zip(moments[0].values(), moments[1].values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"])


def test_a_run_does_not_change_over_to_a_shared_matrix(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer(*RUN, "adapter.share_qkv=false", "updates=1").train()
    saved = shutil.copytree(tmp_path / "run", tmp_path / "saved")
    with pytest.raises(RunDirectoryError, match="share_qkv: false -> true"):
        make_trainer(*RUN, resume=True)
    assert (saved / "adapter" / ADAPTER_FILE).read_bytes() == (
        tmp_path / "run" / "adapter" / ADAPTER_FILE
    ).read_bytes()


def test_two_processes_learn_what_one_learns(make_config: MakeConfig, tmp_path: Path):
    single = ("groups.rollout_batch=1", "groups.update_batch=1", "rewards.identity.batch=1", "rewards.prompt.batch=1")
    settings = (*RUN, *single, "groups.prompts=2", "window.size=2", "optimizer.max_grad_norm=1e9")

    def run(name: str) -> None:
        trainer = assemble(make_config(*settings, f"output={tmp_path / name}"))
        with gradients_of(trainer) as gradients:
            trainer.step()
        torch.save(gradients[0], tmp_path / f"{name}-{trainer.processes.index}.pt")

    PartialState._reset_state()
    run("one")
    in_processes(2, lambda: run("two"), tmp_path)
    PartialState._reset_state()
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    assert one.abs().max() > 0
    assert ((one - first).norm() / one.norm()).item() <= 1e-6
    assert torch.equal(first, second)
