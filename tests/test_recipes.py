"""What the recipes say: the published settings, the sizes in their comments, and the reasons with a number in them."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Qwen2VLConfig,
)

from customized_grpo import policies
from customized_grpo.algorithm import sigma_schedule, step_progress
from customized_grpo.config import RunConfig, load_config, recipes
from customized_grpo.cost import rewards as reward_sizes
from customized_grpo.cost.estimate import estimate
from customized_grpo.rewards.hpsv3 import HPSv3Model
from customized_grpo.training.plan import Plan

T5 = 4_762_310_656  # weights of its encoder in xxl; tests/cost has those of all published models
KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"


def texts() -> Iterator[tuple[str, str]]:
    """Each recipe's name and text."""
    for name, path in recipes().items():
        yield name, path.read_text(encoding="utf-8")


def of_kontext() -> list[str]:
    return [name for name in recipes() if load_config(name).model.path == KONTEXT]


# --- sizes -----------------------------------------------------------------------------------------------------------


def weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@cache
def sizes() -> dict[str, int]:
    """Weights of the rewards' models, made on the meta device from their published configurations."""
    large_clip = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    text = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    qwen = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 151658}
    vision = {"hidden_size": 3584, "embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 4}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    clip = CLIPConfig(projection_dim=768, vision_config={**large_clip, "patch_size": 14}, text_config=text)
    with torch.device("meta"):
        return {
            "facebook/dinov2-base": weights(Dinov2Model(Dinov2Config(image_size=518))),
            "openai/clip-vit-base-patch32": weights(CLIPModel(CLIPConfig())),
            "openai/clip-vit-large-patch14": weights(CLIPModel(clip)),
            "MizzenAI/HPSv3": weights(
                HPSv3Model(Qwen2VLConfig(text_config={**qwen, **heads}, vision_config=vision), 151657)
            ),
        }


def test_the_rewards_models_have_their_published_sizes():
    """As their model cards and papers say: 86 M, 151 M, 428 M, and 8.3 B less a language head of .5 B."""
    assert {name: reward_sizes.PUBLISHED[name] for name in sizes()} == sizes()
    assert [round(size / 1e9, 3) for size in sizes().values()] == [0.087, 0.151, 0.428, 7.749]


@cache
def adapter_size(name: str) -> int:
    config = load_config(name)
    size = policies.adapter_size(config.model, config.adapter)
    assert size is not None
    return size


def test_the_published_adapter_has_956_million_weights():
    """By hand: one A of q, k, v with their B, and A and B of the projections, in 19 double and 38 single blocks."""
    width, rank = 3072, 512
    double = 2 * (rank * (width + 3 * width) + rank * (width + width))
    single = rank * (width + 3 * width) + rank * (5 * width + width)  # proj_out reads attention and four times as much
    assert adapter_size("kontext-paper") == 19 * double + 38 * single == 956_301_312


@pytest.mark.parametrize("name", of_kontext())
def test_the_parameters_in_a_comment_are_those_of_its_adapter(name: str):
    (line,) = [line for line in recipes()[name].read_text().splitlines() if line.startswith("  rank:")] or [""]
    said = re.search(r"([\d.]+) M parameters", line)
    assert said or name == "dreambench"  # it only evaluates
    if said:
        assert float(said[1]) == round(adapter_size(name) / 1e6, 1)


@pytest.mark.parametrize("name", recipes())
def test_every_figure_of_memory_is_computed(name: str):
    """Only these three kinds of figure stand in the recipes."""
    text = recipes()[name].read_text(encoding="utf-8")
    for line in (line for line in text.splitlines() if re.search(r"\d ?GB", line)):
        (said,) = re.findall(r"([\d.]+) ?GB", line)
        if "T5 (" in line:
            assert float(said) == round(2 * T5 / 1e9, 1), line
        elif "hpsv3" in line:
            assert float(said) == round(2 * sizes()["MizzenAI/HPSv3"] / 1e9, 1), line
        else:
            assert "at the peak, by `customized-grpo plan`" in line, line
            assert float(said) == round(estimate(load_config(name)).peak / 1e9), line


@pytest.mark.parametrize("name", recipes())
def test_evaluations_take_less_than_a_tenth_of_a_run(name: str):
    """Of its floating-point operations, counted; rewards and metrics, which both parts have, are left out."""
    work = estimate(load_config(name)).work
    evaluations = sum(part.flops for part in work if part.what.endswith("evaluations"))
    assert 0 < evaluations < 0.1 * sum(part.flops for part in work)


# --- the published settings ------------------------------------------------------------------------------------------

# github.com/Safeoffellow/Customized-GRPO, commit a431775: config/train/syncd_1w_customized_grpo.yaml, and where that
# file has no such setting, train/train_customized_grpo.py and uno/reward/dino.py. Ours on the left.
PUBLISHED = {
    "adapter.rank": 512,  # lora_rank
    "adapter.alpha": 512,  # UNO's LoRA has no alpha: scale 1
    "adapter.targets": "attention_and_output",  # UNO's LoRA: qkv and proj of both streams and of single blocks
    "adapter.share_qkv": True,  # qkv is one layer
    "adapter.ema.decay": None,  # ema: false
    "rewards.identity.name": "dino",  # use_dino
    "rewards.identity.model": "facebook/dinov2-base",  # Dinov2Score
    "rewards.identity.against": "reference",
    "rewards.identity.region": "mask_or_frame",  # *_seg.png where it exists
    "rewards.prompt.name": "hpsv3",  # use_hps_v3
    "model.height": 512,  # h
    "model.width": 512,  # w
    "sampling.num_steps": 25,  # sampling_steps
    "sampling.shift": 3,  # shift
    "noise.dynamics": "dance",
    "noise.level": 0.4,  # eta
    "noise.steps": "all",  # sde_solver, at every step
    "window.strategy": "scattered",  # a permutation of the first 24 steps
    "window.per": "image",  # of its own for each image
    "window.size": 14,  # int(24 * timestep_fraction), .6
    "window.first": 0,
    "shaping.rule": "sars",  # conflict_strategy: tanh
    "shaping.gamma": 0.4,  # gamma
    "shaping.recentre": False,
    "shaping.clip": 5,  # adv_clip_max
    "shaping.normalise": "group",
    "weighting.kind": "tdw",  # weight_strategy: dynamic
    "weighting.high": 0.7,  # hps_high
    "weighting.low": 0.3,  # hps_low
    "weighting.final": 0.5,
    "weighting.balance": "off",
    "objective.trust": "clip",
    "objective.clip_range": 1e-4,  # clip_range
    "objective.minibatches": 3,  # num_generations / gradient_accumulation_steps = 12 / 4
    "objective.updates_per_rollout": 1,
    "objective.kl": 0,
    "objective.step_scale": "none",
    "optimizer.lr": 2e-5,  # learning_rate, constant
    "optimizer.warmup": 0,  # lr_warmup_steps
    "optimizer.weight_decay": 1.1e-4,  # adam_weight_decay
    "optimizer.max_grad_norm": 1,  # max_grad_norm
    "groups.size": 12,  # num_generations
}
# What differs, each with its reason in a comment of the recipe.
OURS = {
    "model.path": KONTEXT,  # FLUX.1-dev with UNO fused
    "model.guidance": 2.5,  # guidance_scale: 3.5
    "weighting.progress": "step",  # position in the loop over permuted steps
}


def setting(config: RunConfig, key: str) -> Any:
    section, *rest = key.split(".")
    value: Any = getattr(config, section)
    for part in rest:
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize(("key", "value"), {**PUBLISHED, **OURS}.items())
def test_kontext_paper_is_what_was_published(key: str, value: object):
    assert setting(load_config("kontext-paper"), key) == value


def test_uno_paper_is_the_same_on_the_published_base():
    """All but the base, its guidance and folders."""
    uno, kontext = (load_config(name).model_dump() for name in ("uno-paper", "kontext-paper"))
    different = {f"{s}.{k}" for s in uno if isinstance(uno[s], dict) for k in uno[s] if uno[s][k] != kontext[s][k]}
    assert different == {f"model.{key}" for key in ("path", "family", "base_adapter", "guidance", "condition_cache")}
    assert (uno["model"]["family"], uno["model"]["guidance"]) == ("uno", 3.5)  # guidance_scale
    assert {key for key in uno if uno[key] != kontext[key]} == {"output", "model"}


def test_kontext_paper_decides_nothing_else():
    """Every number of the recipe is in the table above, or has no part in what is trained."""
    written = yaml.safe_load(recipes()["kontext-paper"].read_text())
    without_part = {"output", "device", "updates", "save_every", "data", "evaluation"}
    keys = {
        f"{section}.{key}" if not isinstance(value, dict) else f"{section}.{key}.{name}"
        for section, values in written.items()
        if section not in without_part
        for key, value in values.items()
        for name in (value if isinstance(value, dict) else [""])
    }
    memory = {
        f"model.{key}" for key in ("dtype", "gradient_checkpointing", "offload_text_encoders", "condition_cache")
    }
    batches = {"groups.prompts", "groups.rollout_batch", "groups.update_batch", "rewards.prompt.batch"}
    assert keys - {*PUBLISHED, *OURS} == {*memory, *batches, "model.max_sequence_length"}


def test_what_differs_from_the_release_has_a_comment():
    lines = recipes()["kontext-paper"].read_text().splitlines()
    assert [line.split(":")[0].strip() for line in lines if "# ours" in line] == ["path", "guidance", "progress"]


# --- numbers in reasons ----------------------------------------------------------------------------------------------


def plan_of(name: str, shift: float) -> Plan:
    config = load_config(name, ["weighting.kind=tdw"])
    return Plan(config, [], sigma_schedule(config.sampling.num_steps, shift))


def mean_prompt_weight(plan: Plan) -> float:
    """Over all places of the window, each as likely as the others."""
    window, size = plan.config.window, plan.config.window.size or 1
    last = window.last or 0
    assert (window.strategy, window.first, last) == ("random", 0, 4)
    places = [range(first, first + size) for first in range(last - size + 2)]
    return float(torch.stack([plan.prompt_weight(place) for place in places]).mean())


@pytest.mark.parametrize("name", ["kontext", "kontext-vlm", "own-subject"])
def test_the_mean_prompt_weight_in_a_comment_is_that_of_the_window(name: str):
    """At Kontext's own shift at 512 pixels, 1,024 tokens: e^mu, mu on the line from .5 at 256 to 1.15 at 4,096."""
    shift = float(torch.tensor(0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)).exp())
    text = recipes()[name].read_text()
    assert f"the model's own schedule, {shift:.2f} at 512 pixels" in text
    said = re.search(r"mean weight is ([\d.]+) \(the release's: ([\d.]+)\)", text)
    assert said
    assert float(said[1]) == pytest.approx(mean_prompt_weight(plan_of(name, shift)), abs=5e-4)
    paper = plan_of("kontext-paper", 3.0).weights
    positions = step_progress(range(14), sigma_schedule(25, 3.0))  # the release reads its table at 0 to 13
    assert float(said[2]) == pytest.approx(float(paper.prompt_weight(positions).mean()), abs=5e-4)


@pytest.mark.parametrize("name", ["kontext", "kontext-vlm"])
def test_the_images_per_optimiser_step_in_a_comment_are_those_of_a_minibatch(name: str):
    config = load_config(name)
    said = re.search(r"(\d+) images per optimiser step", recipes()[name].read_text())
    assert said
    assert int(said[1]) == config.groups.prompts * config.groups.size // config.objective.minibatches


@pytest.mark.parametrize("name", ["kontext", "kontext-vlm", "own-subject"])
def test_recipes_for_one_card_are_what_practice_says(name: str):
    config = load_config(name)
    assert config.adapter.alpha / config.adapter.rank == 2
    assert (config.optimizer.lr, config.noise.dynamics, config.noise.level) == (1e-4, "flow", 0.9)
    assert (config.sampling.num_steps, config.evaluation_steps, config.data.held_out_samples) == (10, 25, 64)
    assert (config.sampling.shift, config.weighting.progress) == ("checkpoint", "sigma")
    assert (config.adapter.ema.decay, config.adapter.ema.every) == (0.9, 8)
    assert (config.model.width, config.model.height, config.model.guidance) == (512, 512, 2.5)
    assert config.groups.prompts >= (8 if name == "own-subject" else 16)


@pytest.mark.parametrize("name", ["critters", "critters-fast", "kontext", "kontext-vlm", "own-subject"])
def test_what_won_the_trials_is_the_default(name: str):
    """docs/results/tuning2; the paper's method has recipes of its own."""
    config = load_config(name)
    assert (config.shaping.rule, config.shaping.normalise, config.shaping.kappa) == ("joint", "pooled", 0.3)
    assert (config.weighting.kind, config.weighting.prompt) == ("constant", 0.5)


@pytest.mark.parametrize("name", ["critters-paper", "kontext-paper"])
def test_the_papers_method_is_one_line_away(name: str):
    config = load_config(name)
    assert (config.shaping.rule, config.shaping.normalise) == ("sars", "group")
    assert (config.weighting.kind, config.weighting.high, config.weighting.low) == ("tdw", 0.7, 0.3)


def test_the_published_experiment_is_run_with_the_papers_recipe():
    """What differs between the two recipes for critters is the method alone."""
    sections = [load_config(name).model_dump(exclude={"output"}) for name in ("critters", "critters-paper")]
    assert [key for key in sections[0] if sections[0][key] != sections[1][key]] == ["shaping", "weighting"]
