"""The published models at their real width, one block of each kind: a whole update, and the memory that was planned.

So nothing at real size runs for the first time at a user's. A few minutes, and 5 GB of memory, or 10 in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import true_width
from customized_grpo.commands.train import run_training
from customized_grpo.config import RunConfig, load_config
from customized_grpo.cost.measured import Settings, measured
from customized_grpo.data import Sample
from customized_grpo.policies import load_policy
from customized_grpo.policies.adapter_file import read_adapter
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.training.assemble import add_adapter
from measured_memory import peak_of
from runs import CALIBRATED

# Qwen's last block computes a text stream that nothing reads.
UNUSED = {"add_q_proj", "to_add_out", "txt_mlp"}
# Without one of these bfloat16 is emulated, which needs more memory and up to a hundred times the time of float32.
HAS_BFLOAT16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
PRECISION = () if HAS_BFLOAT16 else ("model.dtype=float32", "model.quantise=null")
RECIPES = {"kontext": "kontext", "klein": "klein-24gb", "qwen": "qwen-edit", "uno": "uno-paper"}
SMALL = (
    *("device=cpu", "updates=1", "save_every=1", "keep_best=null"),
    *("groups.prompts=1", "groups.size=2", "groups.rollout_batch=2", "groups.update_batch=2"),
    *("sampling.num_steps=3", "window.size=1", "objective.minibatches=1", CALIBRATED),
    *("rewards.identity.model=critters", "rewards.prompt.name=clip_t", "rewards.prompt.model=critters"),
    *("rewards.identity.region=frame", "evaluation.metrics=[]", "evaluation.every=0", "data.source=list.json"),
)


@pytest.fixture(scope="module", params=RECIPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and the folder of its slice."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, true_width.saved(request.param, folder / "model")


def configured(family: str, path: Path, side: int, *overrides: str) -> RunConfig:
    """The family's recipe on its slice, with pictures and references of `side` pixels."""
    own = [f"model.path={path}", f"model.height={side}", f"model.width={side}", *overrides]
    if family != "kontext":
        own.append(f"model.reference_size={side}")
    if family in ("kontext", "klein", "qwen"):
        own.append("window.last=1")
    if family == "klein":
        own += ["evaluation.height=null", "evaluation.width=null"]
    if family == "uno":
        own.append(f"model.base_adapter={true_width.uno_adapter(path.parent)}")
    return load_config(RECIPES[family], [*SMALL, *own, *PRECISION])


def write_list(folder: Path) -> None:
    """Two subjects in two pictures each."""
    draw = np.random.default_rng(0)
    for name in ("a1", "a2", "b1", "b2"):
        Image.fromarray(draw.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    entries = [
        {
            "image_paths": [f"{each}1.png"],
            "other_views": [f"{each}2.png"],
            "prompt": "a toy on the beach",
            "subject": each,
        }
        for each in "ab"
    ]
    (folder / "list.json").write_text(json.dumps(entries))


@pytest.mark.slow
def test_a_whole_update_of_each_recipe(checkpoint: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    family, path = checkpoint
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path)
    config = configured(family, path, 64, "model.max_sequence_length=32")  # few tokens: it takes seconds
    run_training(config, resume=False)
    run = Path(config.output)
    (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert row["gradient_norm"] > 0
    adapter = read_adapter(run).tensors
    still = {name for name, tensor in adapter.items() if not tensor.any()}  # lora_B is zero before the update
    assert all("lora_B" in name and any(part in name for part in UNUSED) for name in still)
    assert sum(tensor.numel() for tensor in adapter.values()) >= measured(Settings.of(config)).adapter


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BFLOAT16, reason="bfloat16 is emulated here: slower by far, and with more memory")
def test_the_memory_of_a_pass_is_the_planned_one(checkpoint: tuple[str, Path], tmp_path: Path):
    family, path = checkpoint
    write_list(tmp_path)
    config = configured(family, path, 256)
    policy = load_policy(config.model, "cpu")
    assert isinstance(policy, DiffusersPolicy)
    add_adapter(policy, config)
    picture = Image.open(tmp_path / "a1.png").resize((1024, 1024))
    condition = policy.blank(Sample("a", "a", "", (picture,))).repeat(2)
    latents = policy.noise(condition, [0, 1])
    for weight in policy.trainable_parameters().values():
        weight.grad = torch.zeros_like(weight)
    planned = measured(Settings.of(config))

    def train() -> None:
        policy.velocity(latents, 0.5, condition).sum().backward()

    def sample() -> None:
        with torch.no_grad():
            policy.velocity(latents, 0.5, condition)

    sample()  # whatever is kept for later passes
    real = {"training": peak_of(train), "sampling": peak_of(sample)}
    assert planned.training.memory == pytest.approx(real["training"], rel=0.03)
    assert planned.sampling.memory == pytest.approx(real["sampling"], rel=0.05)
    assert planned.parameters["transformer"] == count(path)


def count(path: Path) -> int:
    return sum(
        tensor.numel() for file in (path / "transformer").glob("*.safetensors") for tensor in load_file(file).values()
    )
