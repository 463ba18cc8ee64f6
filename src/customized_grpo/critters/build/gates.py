"""Figures that the built-in models must reach before any RL, measured with plain diffusers and transformers calls."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypedDict

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from customized_grpo.algorithm import conflict_diagnostics, group_advantages
from customized_grpo.critters import oracle, world
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.models import TEXT_TOKENS
from customized_grpo.critters.build.stages import round_trip

# Critters that are used only here: not in pretraining, and not in RL or its evaluation (`critters.samples`).
GATE_CRITTERS = range(4_000_000, 5_000_000)
STEPS = 10


class Pictures(TypedDict):
    critters: list[int]
    situations: list[world.Situation]
    images: Tensor  # [N, 3, 32, 32] in [-1, 1]


def true_renders(rng: np.random.Generator, count: int, of: world.World = world.HATTED) -> Pictures:
    critters = [int(c) for c in rng.integers(GATE_CRITTERS.start, GATE_CRITTERS.stop, count)]
    situations = [pics.random_situation(rng, of=of) for _ in critters]
    images = pics.to_tensor([world.draw(c, s) for c, s in zip(critters, situations, strict=True)])
    return {"critters": critters, "situations": situations, "images": images}


def to_uint8(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded as PNG writers do."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


class Rewards:
    """The two rewards as plain calls of a Dinov2Model and a CLIPModel: cosines [N] and [N, situations].

    Images are in [-1, 1].
    """

    def __init__(self, dino: Any, clip: Any, tokenizer: CLIPTokenizer, of: world.World = world.HATTED):
        self.dino, self.clip, self.world = dino, clip, of
        prompts = [situation.prompt for situation in of.situations]
        self.tokens = tokenizer(prompts, padding="max_length", return_tensors="pt").to(clip.device)

    @torch.no_grad()
    def identity(self, images: Tensor, references: Tensor) -> Tensor:
        first, second = (self.dino(part.to(self.dino.device)).last_hidden_state[:, 0] for part in (images, references))
        return F.cosine_similarity(first, second).cpu()

    @torch.no_grad()
    def prompt(self, images: Tensor) -> Tensor:
        texts = self.clip.get_text_features(**self.tokens).pooler_output
        features = self.clip.get_image_features(images.to(self.clip.device)).pooler_output
        return F.cosine_similarity(features[:, None], texts[None], dim=-1).cpu()


def encoder_gates(rewards: Rewards, count: int = 1024) -> dict[str, float]:
    """Identity rewards of a copy, a faithful picture and another critter in the reference's scene; prompt ranking.

    Where there are dyes, faithful means without one, and the dyed pictures have a figure of their own.
    """
    rng, of = np.random.default_rng(11), rewards.world
    truth = true_renders(rng, count, of)
    scenes = [pics.reference_situation(rng, not_scene=s.scene, of=of) for s in truth["situations"]]
    references = pics.to_tensor([world.draw(c, s) for c, s in zip(truth["critters"], scenes, strict=True)])
    strangers = true_renders(rng, count, of)["critters"]
    others = pics.to_tensor([world.draw(c, s) for c, s in zip(strangers, scenes, strict=True)])
    own = rewards.identity(truth["images"], references)
    dyed = torch.tensor([s.dye not in (None, "no") for s in truth["situations"]])
    faithful = own[~dyed]
    cosines = rewards.prompt(truth["images"])
    right = torch.tensor([of.situations.index(s) for s in truth["situations"]])
    return {
        "identity_copy": rewards.identity(references, references).mean().item(),
        "identity_faithful": faithful.mean().item(),
        "identity_faithful_std": faithful.std().item(),
        **({"identity_dyed": own[dyed].mean().item()} if dyed.any() else {}),
        "identity_stranger": rewards.identity(others, references).mean().item(),
        "prompt_ranked_first": (cosines.argmax(-1) == right).float().mean().item(),
        "prompt_right": cosines.gather(1, right[:, None]).mean().item(),
        "prompt_any": cosines.mean().item(),
    }


def oracle_gates(vae: AutoencoderKL, count: int = 1000, of: world.World = world.HATTED) -> dict[str, float]:
    """The identity threshold, and the shares that it accepts: VAE round trips, and the nearest other critters.

    Where there are dyes, the nearest are those without one, and `dyed_other_accepted` is the share of all others'
    dyed pictures.
    """
    rng = np.random.default_rng(12)
    truth = true_renders(rng, count, of)
    clean = to_uint8(truth["images"])
    with torch.no_grad():
        again = torch.cat([round_trip(vae, part.to(vae.device)).cpu() for part in truth["images"].split(100)])
    trips = to_uint8(again)
    errors = np.array([oracle.known_by(p, c, of)[0] for p, c in zip(trips, truth["critters"], strict=True)])
    others = true_renders(rng, 100, of)["critters"]
    dyed = np.array([situation.dye not in (None, "no") for situation in truth["situations"]])
    foreign = np.array([[oracle.known_by(p, c, of)[0] for p in clean] for c in others])
    nearest = foreign[:, ~dyed].min(axis=1)
    threshold = float(np.quantile(nearest, 0.025))

    def read_right(pictures: np.ndarray) -> float:
        cases = zip(pictures, truth["critters"], truth["situations"], strict=True)
        return float(np.mean([oracle.judge(*case, threshold)[1] for case in cases]))

    return {
        "identity_threshold": threshold,
        "nearest_other_accepted": float(np.mean(nearest <= threshold)),
        **({"dyed_other_accepted": float(np.mean(foreign[:, dyed] <= threshold))} if dyed.any() else {}),
        "round_trip_identity": float(np.mean(errors <= threshold)),
        "round_trip_prompt": read_right(trips),
        "clean_prompt": read_right(clean),
    }


def generate(pipe: Any, references: Tensor, prompts: list[str], seed: int) -> Tensor:
    """[N, 3, 32, 32] in [-1, 1] from the FluxKontextPipeline itself, one seed per image."""
    images = []
    for start in range(0, len(prompts), 64):
        chunk = slice(start, start + 64)
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(prompts[chunk]))]
        images.append(
            pipe(
                image=references[chunk] / 2 + 0.5,
                prompt=prompts[chunk],
                height=32,
                width=32,
                max_area=32 * 32,
                _auto_resize=False,
                num_inference_steps=STEPS,
                max_sequence_length=TEXT_TOKENS,
                generator=generators,
                output_type="pt",
            ).images.cpu()
        )
    return torch.cat(images) * 2 - 1


def base_gates(pipe: Any, rewards: Rewards, threshold: float, groups: int = 64, size: int = 12) -> dict[str, float]:
    """The base on held-out critters, `size` images per prompt: success, kinds of picture, conflict of the rewards."""
    rng, of = np.random.default_rng(13), rewards.world
    truth = true_renders(rng, groups, of)
    scenes = [pics.reference_situation(rng, not_scene=s.scene, of=of) for s in truth["situations"]]
    drawn = [world.draw(c, s) for c, s in zip(truth["critters"], scenes, strict=True)]
    references = pics.to_tensor(drawn).repeat_interleave(size, 0)
    prompts = [s.prompt for s in truth["situations"] for _ in range(size)]
    images = generate(pipe, references, prompts, seed=14)
    generated = to_uint8(images)
    verdicts = [
        oracle.judge(generated[i], truth["critters"][i // size], truth["situations"][i // size], threshold)
        for i in range(groups * size)
    ]
    kinds = [["wrong", "drifted", "copied", "faithful"][2 * identity + prompt] for identity, prompt in verdicts]
    right = torch.tensor([of.situations.index(s) for s in truth["situations"] for _ in range(size)])
    prompt = group_advantages(rewards.prompt(images).gather(1, right[:, None]).view(groups, size))
    identity = group_advantages(rewards.identity(images, references).view(groups, size))
    by_group = [Counter(kinds[g * size : (g + 1) * size]) for g in range(groups)]
    return {
        "joint_success": kinds.count("faithful") / len(kinds),
        "oracle_identity": float(np.mean([identity for identity, _ in verdicts])),
        "oracle_prompt": float(np.mean([prompt for _, prompt in verdicts])),
        **{f"share_{kind}": kinds.count(kind) / len(kinds) for kind in ("faithful", "copied", "drifted", "wrong")},
        "reward_correlation": conflict_diagnostics(prompt, identity)["correlation"],
        "groups_with_every_kind": float(np.mean([len(counter) == 4 for counter in by_group])),
    }
