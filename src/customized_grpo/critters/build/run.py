"""`customized-grpo build-critters`: trains every model of a built-in world, measures its gates, writes its files."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline
from safetensors import SafetensorError
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPTokenizer

from customized_grpo.critters.build import gates, models, stages
from customized_grpo.critters.build.pictures import Mixture
from customized_grpo.critters.world import HATTED, WORLDS
from customized_grpo.errors import RunError
from customized_grpo.files.durable import SavingError, check_folder, make_folder, saving, sync_tree, write_text
from customized_grpo.runtime.device import usable_device

# The range of each figure; the provenance file records the figures that were reached.
LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "oracle": {
        "clean_prompt": (1.0, 1.0),
        "round_trip_prompt": (0.99, 1.0),
        "round_trip_identity": (0.99, 1.0),
        "nearest_other_accepted": (0.0, 0.05),
    },
    "encoders": {
        "identity_copy": (0.9999, 1.0001),
        "identity_faithful": (0.70, 0.80),
        "identity_stranger": (-1.0, 0.45),
        "prompt_ranked_first": (0.95, 1.0),
    },
    "faithful": {"joint_success": (0.60, 1.0)},
    "base": {"joint_success": (0.10, 0.40), "groups_with_every_kind": (0.5, 1.0), "reward_correlation": (-1.0, 0.0)},
}
DYED_LIMITS: dict[str, dict[str, tuple[float, float]]] = {  # further ones where prompts ask for dyes
    "oracle": {"dyed_other_accepted": (0.0, 0.02)},
    "encoders": {"identity_dyed": (0.35, 0.60)},
}


class GateError(RunError, RuntimeError):
    """The built-in models miss gates; the message lists each one with its figure."""


@dataclass(frozen=True)
class Recipe:
    """All settings that decide the weights."""

    world: str = HATTED.name
    seed: int = 0
    vae_steps: int = 2500
    clip_steps: int = 2500
    dino_steps: int = 1000
    faithful_steps: int = 2000
    mixture_steps: int = 7000
    mixture: Mixture = field(
        default_factory=lambda: {"faithful": 0.36, "copied": 0.32, "drifted": 0.18, "wrong": 0.14}
    )

    def shortened(self, divisor: int) -> Recipe:
        """The same recipe with all step counts divided: to try out the build, not for weights that are used."""
        counts = {name: max(value // divisor, 1) for name, value in asdict(self).items() if name.endswith("_steps")}
        return replace(self, **counts)


class Build:
    """The stages in order. Each keeps its state in `directory`; a finished stage is loaded, not repeated."""

    def __init__(self, recipe: Recipe, directory: Path, device: str = "cpu"):
        self.recipe, self.directory, self.device = recipe, directory, usable_device(device)
        self.world = WORLDS[recipe.world]
        self.log: dict[str, dict[str, float]] = {}
        self.settings: dict[str, stages.Settings] = {}
        torch.manual_seed(recipe.seed)
        self.pipe: FluxKontextPipeline = models.pipeline(self.world).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.dino_model: Any = models.dino()
        self.clip_model: Any
        self.clip_tokenizer: CLIPTokenizer
        self.clip_model, self.clip_tokenizer = models.clip(self.world)
        self.dino_model.to(self.device)
        self.clip_model.to(self.device)

    @property
    def vae_model(self) -> AutoencoderKL:
        return self.pipe.vae

    def _fit(
        self,
        name: str,
        modules: list[torch.nn.Module],
        loss: stages.Loss,
        *,
        lr: float,
        after: str = "",
        hold: float = 0.0,
        **own: Any,
    ) -> None:
        """Train one stage. Its settings include those of the stage that it builds on (`after`)."""
        steps = getattr(self.recipe, f"{name}_steps")
        further = {**own, **({after: self.settings[after]} if after else {})}
        self.settings[name] = {"steps": steps, "lr": lr, "hold": hold, **further}
        schedule = {"steps": steps, "lr": lr, "hold": hold, "seed": self.recipe.seed}
        outcome = stages.fit(name, modules, loss, **schedule, directory=self.directory, settings=further)
        self.log[name] = {"steps": steps, "lr": lr, **outcome}

    def vae(self) -> None:
        loss = stages.vae_loss(self.vae_model, self.world)
        self._fit("vae", [self.vae_model], loss, lr=2e-3, world=self.recipe.world)
        stages.normalise_latents(self.vae_model, self.recipe.seed, self.world)

    def clip(self) -> None:
        loss = stages.clip_loss(self.clip_model, self.clip_tokenizer, self.vae_model, self.world)
        self._fit("clip", [self.clip_model], loss, lr=1e-3, after="vae")

    def dino(self) -> None:
        loss = stages.dino_loss(self.dino_model, self.vae_model, of=self.world)
        self._fit("dino", [self.dino_model], loss, lr=1e-3, after="vae")

    def faithful(self) -> None:
        self._base("faithful", {"faithful": 1.0}, shift=2.0, lr=2e-3, after="vae")

    def mixture(self) -> None:
        """Holds the rate: the noise's second choice, subject or stranger, is learned late and only at full rate."""
        self._base("mixture", self.recipe.mixture, shift=3.0, lr=1.5e-3, hold=0.6, after="faithful")

    def _base(self, name: str, mixture: Mixture, *, shift: float, **settings: Any) -> None:
        parts = [self.pipe.transformer, self.pipe.text_encoder, self.pipe.text_encoder_2]
        for part in parts:
            part.requires_grad_(True)
        loss = stages.flow_loss(self.pipe, mixture, shift, of=self.world)
        self._fit(name, parts, loss, shift=shift, mixture=mixture, **settings)

    # --- the whole build ---------------------------------------------------------------------------------------------

    def run(self, target: Path) -> None:
        """Train the unfinished stages, measure every gate, write the weights. Raises GateError if a gate is missed."""
        check_folder(target)
        check_folder(self.directory, "--work")
        make_folder(self.directory)
        self.vae()
        figures: dict[str, dict[str, float]] = {"oracle": gates.oracle_gates(self.vae_model, of=self.world)}
        threshold = figures["oracle"]["identity_threshold"]
        self.clip()
        self.dino()
        rewards = gates.Rewards(self.dino_model, self.clip_model, self.clip_tokenizer, self.world)
        figures["encoders"] = gates.encoder_gates(rewards)
        self.faithful()
        figures["faithful"] = gates.base_gates(self.pipe, rewards, threshold)
        self.mixture()
        figures["base"] = gates.base_gates(self.pipe, rewards, threshold)
        self.save(target, figures)
        missed = [
            f"{part}.{name} is {figures[part][name]:.3f}, must be {low:g} to {high:g}"
            for part, limits in self.limits.items()
            for name, (low, high) in limits.items()
            if not low <= figures[part][name] <= high
        ]
        if missed:
            raise GateError("the weights are written, but:\n" + "\n".join(missed))

    @property
    def limits(self) -> dict[str, dict[str, tuple[float, float]]]:
        further = {} if self.world is HATTED else DYED_LIMITS
        return {part: {**limits, **further.get(part, {})} for part, limits in LIMITS.items()}

    def save(self, target: Path, figures: dict[str, dict[str, float]]) -> None:
        """Write the models as diffusers and transformers do, and the provenance file. Raises SavingError."""
        picture = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": False}
        size = {"height": 32, "width": 32}
        try:
            with saving(target):
                self.pipe.save_pretrained(target / "generator")
                self.dino_model.save_pretrained(target / "dino")
                self.clip_model.save_pretrained(target / "clip")
                self.clip_tokenizer.save_pretrained(target / "clip")
                BitImageProcessorPil(size=size, **picture).save_pretrained(target / "dino")
                CLIPImageProcessorPil(size=size, **picture).save_pretrained(target / "clip")
                sync_tree(target)
        except SafetensorError as error:  # how safetensors reports a full or broken disk
            raise SavingError(f"could not write {target}: {error}", str(error)) from error
        provenance = {
            "recipe": asdict(self.recipe),
            "stages": self.log,
            "gates": figures,
            "hardware": {"processor": platform.processor() or platform.machine(), "device": str(self.device)},
            "packages": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        }
        write_text(target / "provenance.json", json.dumps(provenance, indent=2) + "\n")
