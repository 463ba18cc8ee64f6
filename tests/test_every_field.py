"""Every field of the configuration is used: changing it changes something that can be observed.

A field without a case fails, as does a case without a field. A case observes the cheapest thing that shows its field.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_models
from customized_grpo.algorithm import sigma_schedule
from customized_grpo.config import ConfigError, RunConfig, load_config
from customized_grpo.cost.batches import settled
from customized_grpo.critters.weights import FOLDER
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import load_policy
from customized_grpo.rewards.scoring import RewardError
from customized_grpo.rewards.settings import ClipTSettings, DinoSettings, RewardSettings
from customized_grpo.training.advice import notices as notices_of
from customized_grpo.training.assemble import assemble, load_rewards
from customized_grpo.training.plan import Plan
from customized_grpo.training.samples import load_samples
from program import TINY
from runs import CALIBRATED, NEEDS_COMPILER
from structure import ROOT

SMALL = (
    *("groups.prompts=1", "sampling.num_steps=3", "window.last=1", "window.size=1", "data.train_samples=6"),
    *("data.held_out_samples=2", "adapter.targets=[to_q, to_v]", "adapter.rank=2", "adapter.alpha=2"),
)


# --- what can be observed --------------------------------------------------------------------------------------------


def finished_run(config: RunConfig) -> dict[str, Any]:
    """All that a run leaves in its folder, apart from times."""
    assemble(config).train()
    folder = Path(config.output)
    adapter = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")

    def log(name: str) -> list[dict[str, Any]]:
        lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    return {
        "metrics": log("metrics.jsonl"),
        "evaluations": log("evaluations.jsonl"),
        "adapter": {name: weight.flatten().tolist() for name, weight in adapter.items()},
        "pictures": {path.name: path.read_bytes() for path in (folder / "images").glob("eval-*.png")},
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
    }


_RUNS: dict[str, dict[str, Any]] = {}  # most cases change one field of the same settings


def _run(config: RunConfig) -> dict[str, Any]:
    """`finished_run`, once for equal settings: the folder alone changes nothing, as a test below shows."""
    settings = config.model_dump_json(exclude={"output"})
    if settings not in _RUNS:
        _RUNS[settings] = finished_run(config)
    return _RUNS[settings]


def rows(config: RunConfig) -> Any:
    return _run(config)["metrics"]


def learnt(config: RunConfig) -> Any:
    return _run(config)["adapter"]


def evaluations(config: RunConfig) -> Any:
    return _run(config)["evaluations"], _run(config)["pictures"]


def files(config: RunConfig) -> Any:
    """Names and number of the files that a run leaves."""
    return _run(config)["files"]


def planned(config: RunConfig) -> Any:
    """Samples, windows, weights, seeds and learning rates of the first updates."""
    sigmas = sigma_schedule(config.sampling.num_steps, float(config.sampling.shift))
    plan = Plan(config, load_samples(config)[0], sigmas)
    return (
        [[sample.id for sample in plan.batch(update)] for update in range(4)],
        [plan.window(update) for update in range(12)],
        plan.prompt_weight(range(config.sampling.num_steps - 1)).tolist(),
        [plan.seed(update, 0, 0) for update in range(4)],
        [plan.lr(step) for step in range(6)],
    )


def notices(config: RunConfig) -> Any:
    """What the user is told before a run; that a degraded run stops or is balanced: training/test_watch.py."""
    return notices_of(Plan(config, load_samples(config)[0], sigma_schedule(config.sampling.num_steps, 3.0)))


def samples(config: RunConfig) -> Any:
    """Which samples are trained on and which are held out, and the files of their pictures."""
    return [
        [(s.id, s.prompt, s.subject, [p for p in s.references if isinstance(p, Path)]) for s in split]
        for split in load_samples(config)
    ]


def forward_batches(config: RunConfig) -> Any:
    """Images per forward pass of an update, in order: its results do not depend on them."""
    trainer, seen = assemble(settled(config, resume=False)[0]), []
    velocity = trainer.policy.velocity

    def counting(latents: Tensor, sigma: float | Tensor, condition: Any) -> Tensor:
        seen.append(len(latents))
        return velocity(latents, sigma, condition)

    trainer.policy.velocity = counting  # pyright: ignore[reportAttributeAccessIssue]
    trainer.step()
    return seen


def encoder_batches(config: RunConfig) -> Any:
    """Pictures per forward pass of each encoder."""
    seen = []
    for reward in load_rewards(config).values():
        hook = lambda module, inputs, named, out: seen.append(len(named["pixel_values"]))  # noqa: ARG005, E731
        vision = getattr(reward, "model", None) or reward.features.model  # pyright: ignore
        vision = getattr(vision, "vision_model", vision)
        with vision.register_forward_hook(hook, with_kwargs=True):  # rewards share a model for as long as it lives
            reward(torch.rand(3, 3, 32, 32), load_samples(config)[0][:3])
    return seen


def stops(config: RunConfig) -> Any:
    """The error that stops a run."""
    try:
        assemble(config).train()
    except (RewardError, ConfigError, ModelError) as error:
        return str(error)
    return "finished"


def encoder_devices(config: RunConfig) -> Any:
    return [str(reward.features.device) for reward in load_rewards(config).values()]  # pyright: ignore


@pytest.fixture(autouse=True)
def _meta_is_a_device(monkeypatch: pytest.MonkeyPatch):
    """Users may not choose it; here it is the one device other than the CPU that every machine has."""
    for place in ("runtime.device", "policies.diffusers_policy"):
        monkeypatch.setattr(f"customized_grpo.{place}.usable_device", torch.device)


def device(config: RunConfig) -> Any:
    policy = load_policy(config.model, config.device)
    return policy.device.type, next(policy.module.parameters()).device.type


def memory(config: RunConfig) -> Any:
    """What a policy recomputes, where its text encoders are, and the files that encoding leaves."""
    policy: Any = load_policy(config.model, config.device)  # Any: these attributes are this family's own
    if policy.device.type != "meta":
        policy.encode(load_samples(config)[0][:1])
    cached = sorted(path.name for path in Path(config.output).parent.rglob("*.safetensors"))
    compiled = policy.module.transformer_blocks[0]._compiled_call_impl is not None
    return policy.module.is_gradient_checkpointing, policy.pipe.text_encoder_2.device.type, cached, compiled


def folders(config: RunConfig) -> Any:
    assemble(config)
    return Path(config.output).is_dir() and config.output


# --- one case per field ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`field=value` changes what `observe` sees, under settings in which the field has something to do."""

    value: object
    observe: Callable[[RunConfig], Any]
    given: tuple[str, ...] = field(default=())


ALL = ("window.strategy=all", "window.size=null")
SLIDING = ("window.strategy=sliding", "sampling.num_steps=10", "window.last=8")
LONG = ("sampling.num_steps=20", "window.last=18")
QUICK = ("optimizer.lr=1e-2",)
JOINT = ("shaping.rule=joint", CALIBRATED)
OTHER_CALIBRATION = ROOT / "docs" / "results" / "tuning2" / "calibration.yaml"
SCATTERED = ("window.strategy=scattered", "sampling.num_steps=10", "window.last=8")
NFT = ("objective.kind=nft",)
TWICE = ("objective.updates_per_rollout=2", "optimizer.lr=1e-2")
LIST = ("data.source={list}", "data.train_samples=null", "data.held_out_share=.4")

CASES: dict[str, Case] = {
    "output": Case("{tmp}/elsewhere", folders),
    "seed": Case(1, planned),
    "device": Case("meta", device),
    "updates": Case(2, rows),
    "tracking": Case("[tensorboard]", files),
    "save_every": Case(1, files, ("updates=2",)),
    "keep_last": Case(1, files, ("updates=2", "save_every=1")),
    "model.path": Case("{guided}", rows),
    "model.family": Case("uno", stops),  # another model's
    "model.base_adapter": Case("{adapter}", rows),
    "model.quantise": Case("int8", rows, ("model.dtype=bfloat16",)),
    "model.reference_size": Case(16, rows, ("model.path={uno}", "model.family=uno", "model.reference_size=32")),
    "model.shard": Case("true", stops),  # one process cannot
    "model.dtype": Case("bfloat16", rows),
    "model.height": Case(36, rows),
    "model.width": Case(36, rows),
    "model.guidance": Case(5, rows, ("model.path={guided}",)),
    "model.max_sequence_length": Case(20, rows),
    "model.gradient_checkpointing": Case("true", memory),
    "model.compile": Case("true", memory),
    "model.offload_text_encoders": Case("true", memory, ("device=meta",)),
    "model.condition_cache": Case("{tmp}/conditions", memory),
    "adapter.rank": Case(3, learnt),
    "adapter.alpha": Case(8, rows),  # the gradient's norm
    "adapter.targets": Case("[to_k]", learnt),
    "adapter.share_qkv": Case("true", learnt, ("adapter.targets=attention",)),
    "data.source": Case("{list}", samples),
    "data.root": Case("{root}", samples, ("data.source={stray}",)),
    "data.class_word": Case("cat", samples, ("data.source={photographs}", "data.class_word=dog")),
    "data.train_samples": Case(5, samples),
    "data.held_out_samples": Case(1, samples),
    "data.held_out_share": Case(0.7, samples, LIST),
    "rewards.identity.name": Case("clip_t", rows),
    "rewards.identity.model": Case("{dino}", rows),
    "rewards.identity.against": Case("other_view", rows),
    "rewards.identity.region": Case("centre", rows),
    "rewards.identity.over": Case("min", rows, ("data.source={pairs}", "data.held_out_share=0", "evaluation.every=0")),
    "rewards.identity.device": Case("cpu:0", encoder_devices),
    "rewards.identity.preprocess": Case("benchmark", rows),
    "rewards.identity.batch": Case(1, encoder_batches),
    "rewards.prompt.name": Case("dino", rows),
    "rewards.prompt.model": Case("{clip}", rows),
    "rewards.prompt.batch": Case(1, encoder_batches),
    "rewards.prompt.device": Case("cpu:0", encoder_devices),
    "rewards.look.role": Case("prompt", learnt, ("rewards.look={{name: copy_paste, role: identity}}",)),
    "rewards.look.weight": Case(0.9, learnt, ("rewards.look={{name: copy_paste, role: quality, weight: .1}}",)),
    "max_unscored": Case(0.5, stops, ("rewards.identity.against=other_view", "max_unscored=1", *LIST)),
    "sampling.num_steps": Case(4, rows),
    "sampling.shift": Case(2, rows),
    "sampling.finish_steps": Case(1, rows, LONG),
    "noise.dynamics": Case("dance", rows),
    "noise.level": Case(0.5, rows),
    "noise.steps": Case("all", rows),
    "window.per": Case("update", planned, SCATTERED),
    "window.strategy": Case("sliding", planned, SLIDING[1:]),
    "window.size": Case(2, planned),
    "window.first": Case(1, planned, ALL),
    "window.last": Case(0, planned, ALL),
    "window.start": Case(1, planned, ("window.strategy=fixed", "window.start=0")),
    "window.every": Case(2, planned, SLIDING),
    "window.stride": Case(2, planned, SLIDING),
    "shaping.rule": Case("min", rows),
    "shaping.gamma": Case(0.1, rows),
    "shaping.recentre": Case("true", rows),
    "shaping.scale": Case(0.5, learnt),
    "adapter.ema.decay": Case(0.5, files),
    "adapter.ema.every": Case(2, evaluations, ("adapter.ema.decay=.5", "updates=2", "evaluation.every=2", *QUICK)),
    "keep_best": Case("joint_success", files, ("evaluation.every=1",)),
    "on_degradation": Case("balance", notices, ("shaping.rule=min",)),
    "shaping.clip": Case(0.1, rows),
    "shaping.joint_share": Case(0.2, rows, JOINT),
    "shaping.threshold": Case(1.0, rows, ("shaping.rule=gated", CALIBRATED)),
    "shaping.calibration": Case(OTHER_CALIBRATION, rows, JOINT),
    "shaping.normalise": Case("pooled", rows, ("shaping.kappa=3",)),
    "shaping.kappa": Case(3, rows, ("shaping.normalise=pooled",)),
    "weighting.kind": Case("constant", planned),
    "weighting.prompt": Case(0.6, planned, ("weighting.kind=constant",)),
    "weighting.progress": Case("sigma", planned, ("sampling.shift=2",)),
    "weighting.high": Case(0.8, planned),
    "weighting.low": Case(0.2, planned, LONG),
    "weighting.final": Case(0.4, planned, LONG),
    "weighting.start": Case(0.3, planned, LONG),
    "weighting.centre": Case(0.5, planned, LONG),
    "weighting.end": Case(0.7, planned, LONG),
    "weighting.rate": Case(10, planned, LONG),
    "weighting.balance": Case("proportional", rows, (CALIBRATED,)),
    "objective.kind": Case("nft", learnt),
    "objective.beta": Case(0.5, learnt, (*NFT, *TWICE)),
    "objective.old_decay": Case(0.9, learnt, (*NFT, "updates=2", *QUICK)),
    "objective.clip_range": Case(1e3, rows, TWICE),
    "objective.trust": Case("guard", rows, ("objective.step_scale=none",)),
    "objective.max_divergence": Case(1e3, rows, (*TWICE, "objective.trust=dppo")),
    "objective.minibatches": Case(2, learnt),
    "objective.kl": Case(1, learnt, TWICE),
    "objective.step_scale": Case("none", rows),
    "objective.updates_per_rollout": Case(2, learnt),
    "optimizer.lr": Case(1e-2, learnt),
    "optimizer.weight_decay": Case(10, learnt),
    "optimizer.warmup": Case(2, rows),
    "optimizer.max_grad_norm": Case(1e-7, learnt),
    "groups.prompts": Case(2, rows),
    "groups.size": Case(4, rows),
    "groups.batch": Case("auto", forward_batches, ("groups.rollout_batch=1", "groups.update_batch=1")),
    "groups.rollout_batch": Case(2, forward_batches),
    "groups.update_batch": Case(2, forward_batches),
    "evaluation.every": Case(1, evaluations),
    "evaluation.height": Case(36, evaluations, ("evaluation.every=1",)),
    "evaluation.width": Case(36, evaluations, ("evaluation.every=1",)),
    "evaluation.num_steps": Case(5, evaluations, ("evaluation.every=1",)),
    "evaluation.metrics": Case("[copy_paste]", evaluations, ("evaluation.every=1",)),
    "evaluation.grid": Case(1, evaluations, ("evaluation.every=1",)),
}


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, those of sections included; of the rewards only `dino` and `clip_t`."""
    for name, info in model.model_fields.items():
        if name == "rewards":
            common = {field for field in RewardSettings.model_fields if field != "name"}
            yield from (f"rewards.identity.{field}" for field in DinoSettings.model_fields if field not in common)
            yield from (f"rewards.prompt.{field}" for field in ClipTSettings.model_fields if field not in common)
            yield from sorted(f"rewards.look.{field}" for field in common)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields_of(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_has_a_case_and_every_case_a_field():
    assert set(CASES) == set(fields_of(RunConfig))


@pytest.mark.parametrize("observe", [finished_run, planned, samples, forward_batches, encoder_batches, device, memory])
def test_observations_repeat_themselves(observe: Callable[[RunConfig], Any], tmp_path: Path):
    """Equal settings in another folder give equal observations; otherwise every field would seem to be used."""
    settings = [*SMALL, "evaluation.every=1", "save_every=1"]
    one, two = (load_config(TINY, [*settings, f"output={tmp_path / name / 'run'}"]) for name in ("one", "two"))
    assert observe(one) == observe(two)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, guided_checkpoint: Path) -> dict[str, str]:
    """Files that the cases name: other encoders, another generator, lists."""
    folder = tmp_path_factory.mktemp("places")
    for part in ("dino", "clip"):
        shutil.copytree(FOLDER / part, folder / part)
        weights = load_file(folder / part / "model.safetensors")
        torch.manual_seed(0)
        changed = {name: w + 0.1 * torch.randn_like(w) if w.dim() > 1 else w for name, w in weights.items()}
        save_file(changed, folder / part / "model.safetensors", {"format": "pt"})
    pictures = [folder / name / "00.png" for name in ("cat", "dog", "cup")]
    for picture, sample in zip(pictures, load_samples(load_config(TINY))[0], strict=False):
        picture.parent.mkdir()
        sample.reference_images()[0].save(picture)
    entries = [{"prompt": "a thing", "image_paths": [f"{picture.parent.name}/00.png"]} for picture in pictures]
    (folder / "list.json").write_text(json.dumps(entries))
    # The same relative path leads to one picture next to this list, and to another one under another root.
    for place, picture in ((folder / "stray" / "here", pictures[0]), (folder / "here", pictures[1])):
        place.mkdir(parents=True)
        shutil.copy(picture, place / "00.png")
    (folder / "stray" / "list.json").write_text(json.dumps([{"prompt": "a thing", "image_paths": ["here/00.png"]}]))
    names = [entry["image_paths"][0] for entry in entries]
    pairs = [{"prompt": f"thing {n}", "image_paths": [names[n], names[n - 1]], "subject": str(n)} for n in range(3)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    policy = load_policy(load_config(TINY).model, "cpu")
    policy.add_adapter(2, 2.0)
    for weight in policy.trainable_parameters().values():
        torch.nn.init.normal_(weight, std=0.1)
    policy.save_adapter(folder / "adapter")
    return {
        "list": str(folder / "list.json"),
        "pairs": str(folder / "pairs.json"),
        "stray": str(folder / "stray" / "list.json"),
        "root": str(folder),
        "photographs": str(folder / "cat"),
        "dino": str(folder / "dino"),
        "clip": str(folder / "clip"),
        "guided": str(guided_checkpoint),
        "uno": str(tiny_models.saved(tiny_models.flux_dev(), folder / "uno")),
        "adapter": str(folder / "adapter"),
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=[NEEDS_COMPILER] * (n == "model.compile")) for n in CASES])
def test_every_field_is_used(name: str, tmp_path: Path, places: dict[str, str]):
    case = CASES[name]

    def observed(folder: str, *overrides: str) -> Any:
        given = [*SMALL, *case.given, f"output={tmp_path / folder}", *overrides]
        filled = [text.format(tmp=tmp_path, **places) for text in given]
        return case.observe(load_config(TINY, filled))

    assert observed("before") != observed("after", f"{name}={case.value}")
