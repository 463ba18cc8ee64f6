"""How the models of the built-in world are trained: one loss per stage, and one loop for all stages."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxKontextPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTokenizer, Dinov2Model

from customized_grpo.critters import world
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.models import TEXT_TOKENS
from customized_grpo.errors import RunError
from customized_grpo.files.durable import replacing
from customized_grpo.files.paths import why

Loss = Callable[[np.random.Generator, torch.Generator], Tensor]
Settings = dict[str, Any]  # of numbers, strings and dictionaries of them
SAVE_EVERY = 100  # steps


class StageError(RunError, RuntimeError):
    """A stage's file in the work folder cannot be continued: it is damaged, or was trained with other settings."""


def fit(
    name: str,
    modules: Iterable[nn.Module],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    seed: int,
    directory: Path,
    hold: float = 0.0,
    settings: Settings | None = None,
) -> dict[str, float]:
    """Minimise `loss` with AdamW and a warm-up of 100 steps; returns seconds and the mean loss of the last 100 steps.

    Data are a function of (seed, name, step), and the state is saved every 100 steps, so a killed stage continues from
    its last save and ends with the same weights.

    hold      share of the steps at the full learning rate, before a cosine to zero
    settings  everything else that decides the outcome; a state saved under other settings is refused

    Raises StageError, SavingError.
    """
    network = nn.ModuleList(modules)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr, weight_decay=1e-4)
    state_file = directory / f"{name}.safetensors"
    settings = {"steps": steps, "lr": lr, "seed": seed, "hold": hold, **(settings or {})}
    state: dict[str, Any] = {"step": 0, "recent": [], "seconds": 0.0}
    if state_file.exists():
        state = _restore(state_file, network, optimizer, settings)
    first, recent, before, start = state["step"], state["recent"], state["seconds"], time.perf_counter()
    network.train()
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * _learning_rate_factor(step, steps, hold)
        stage = int.from_bytes(name.encode()) % 2**63
        noise_seed = int(np.random.default_rng([seed, step, stage]).integers(2**62))
        value = loss(np.random.default_rng([seed, stage, step]), torch.Generator().manual_seed(noise_seed))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], value.item()]
        if step % 20 == 19:
            bar.set_postfix(loss=f"{np.mean(recent):.4f}")
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step == steps - 1:
            state = {
                "settings": settings,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "recent": recent,
                "seconds": before + time.perf_counter() - start,
            }
            save_state(state, state_file)
    network.eval().requires_grad_(False)
    return {"loss": float(np.mean(recent)), "seconds": state["seconds"]}


def _learning_rate_factor(step: int, steps: int, hold: float) -> float:
    decay = max((step - hold * steps) / (steps - hold * steps), 0.0)
    return min((step + 1) / 100, 1) * 0.5 * (1 + math.cos(math.pi * decay))


def _restore(file: Path, network: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings) -> dict[str, Any]:
    """Load a saved state into network and optimizer."""
    state = read_state(file)
    saved = state["settings"]
    differences = [
        f"{key} {saved.get(key)} instead of {settings.get(key)}"
        for key in sorted({*saved, *settings})
        if saved.get(key) != settings.get(key)
    ]
    if differences:
        raise StageError(
            f"{file} was trained with {', '.join(differences)}: delete it and the stages that depend on it, "
            f"or name another folder for unfinished stages"
        )
    try:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:  # torch's for missing, additional or differently shaped weights
        raise StageError(f"{file} does not hold this stage's weights ({why(error)[:200]}); delete it") from error
    return state


def save_state(state: dict[str, Any], path: Path) -> None:
    """Replace the file in one move, so that a crash leaves either the old or the new state. Raises SavingError.

    Tensors of `network` and `optimizer` are the file's tensors, everything else is JSON in its header: no pickle.
    """
    optimizer = state["optimizer"]
    tensors = {f"network.{name}": tensor.clone() for name, tensor in state["network"].items()}  # tied ones too
    tensors |= {
        f"optimizer.{index}.{name}": tensor
        for index, values in optimizer["state"].items()
        for name, tensor in values.items()
    }
    others = {name: value for name, value in state.items() if name not in ("network", "optimizer")}
    content = save(tensors, {"state": json.dumps({**others, "groups": optimizer["param_groups"]})})
    with replacing(path) as aside:
        aside.write_bytes(content)


def read_state(path: Path) -> dict[str, Any]:
    """The state that `save_state` wrote. Raises StageError if the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise StageError(f"{path} cannot be read ({why(error)}); delete it to repeat the stage") from error
    if not isinstance(state, dict) or not {"settings", "step", "recent", "seconds", "groups"} <= state.keys():
        raise StageError(f"{path} is not the state of a stage; delete it to repeat the stage")
    groups = state.pop("groups")
    for group in groups:
        group["betas"] = tuple(group["betas"])  # JSON has no tuples
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        _, index, value = name.split(".")
        by_parameter.setdefault(int(index), {})[value] = tensors.pop(name)
    network = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    return {**state, "network": network, "optimizer": {"state": by_parameter, "param_groups": groups}}


# --- VAE -------------------------------------------------------------------------------------------------------------


def vae_loss(vae: AutoencoderKL, of: world.World = world.HATTED) -> Loss:
    """Reconstruction of renders and mosaics, with a weak pull of the latents towards a unit Gaussian."""

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        images = torch.cat([pics.renders(rng, 24, of)[0], pics.mosaics(rng, 8)]).to(vae.device)
        posterior = _posterior(vae, images)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(vae.device)
        decoded = _decoded(vae, posterior.mean + posterior.std * noise)
        return F.mse_loss(decoded, images) + 0.1 * F.l1_loss(decoded, images) + 3e-4 * posterior.kl().mean() / 1024

    return loss


def _posterior(vae: Any, images: Tensor) -> DiagonalGaussianDistribution:
    return vae.encode(images).latent_dist


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, seed: int, of: world.World = world.HATTED) -> None:
    """Set shift_factor and scaling_factor so that the latents of renders have mean 0 and variance 1."""
    images, _ = pics.renders(np.random.default_rng([seed, 1]), 512, of)
    latents = torch.cat([_posterior(vae, part).mean for part in images.to(vae.device).split(64)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor, noise: Tensor | None = None) -> Tensor:
    """Encode and decode [-1, 1] images; `noise` is added to the latents in units of their spread."""
    latents = _posterior(vae, images).mean
    if noise is not None:
        latents = latents + noise.to(latents) / vae.config["scaling_factor"]
    return _decoded(vae, latents).clamp(-1, 1)


def _as_generated(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """The first half of the images decoded by the VAE from slightly wrong latents, the rest unchanged."""
    half = images.shape[0] // 2
    level = 0.3 * torch.rand(half, 1, 1, 1, generator=generator)
    noise = level * torch.randn(half, 4, 16, 16, generator=generator)
    return torch.cat([round_trip(vae, images[:half], noise), images[half:]])


# --- CLIP ------------------------------------------------------------------------------------------------------------


def clip_loss(clip: Any, tokenizer: CLIPTokenizer, vae: AutoencoderKL, of: world.World = world.HATTED) -> Loss:
    """For a CLIPModel: each picture against the prompts of all situations, with critters drawn at random."""
    tokens = tokenizer([s.prompt for s in of.situations], padding="max_length", return_tensors="pt").to(clip.device)
    index = {situation: i for i, situation in enumerate(of.situations)}

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        images, situations = pics.renders(rng, 96, of)
        images = pics.blemish(_as_generated(vae, images.to(vae.device), generator).cpu(), generator)
        texts = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
        features = F.normalize(clip.get_image_features(images.to(clip.device)).pooler_output, dim=-1)
        labels = torch.tensor([index[s] for s in situations], device=clip.device)
        return F.cross_entropy(clip.logit_scale.exp() * features @ texts.T, labels)

    clip.logit_scale.requires_grad_(False)
    return loss


# --- DINO ------------------------------------------------------------------------------------------------------------

FAITHFUL_AT_LEAST = 0.72  # cosine up to which faithful pictures are pulled; the gate asks for .70 to .80
DYED_BETWEEN = (0.42, 0.52)  # cosines to which dyed ones are pulled or pushed; the gate asks for .35 to .60
STRANGER_AT_MOST = 0.35  # cosine down to which other critters are pushed; the gate asks for at most .45


def dino_loss(dino: Dinov2Model, vae: AutoencoderKL, batch: int = 48, of: world.World = world.HATTED) -> Loss:
    """Crops and jitter of one picture attract, all other pictures repel (InfoNCE); then two hinges on whole frames.

    As for any self-supervised encoder, another picture of the same critter is just another picture, and repels. One
    hinge keeps it at `FAITHFUL_AT_LEAST` or more, the other keeps another critter in the same scene at
    `STRANGER_AT_MOST` or less. They go no further, so that copying the reference still pays, as with real encoders. A
    dyed critter stays between the two: the encoder sees the subject, and that it looks different.
    """

    def embed(images: Tensor) -> Tensor:
        return F.normalize(dino(images.to(dino.device)).last_hidden_state[:, 0], dim=-1)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        critters = [pics.random_critter(rng) for _ in range(batch)]
        scenes = [pics.reference_situation(rng, of=of) for _ in range(batch)]
        elsewhere = [pics.random_situation(rng, not_scene=scene.scene, of=of) for scene in scenes]
        least, most = torch.tensor([_expected_cosine(situation) for situation in elsewhere], device=dino.device).T
        references = pics.to_tensor([world.draw(c, s) for c, s in zip(critters, scenes, strict=True)])
        faithful = pics.to_tensor([world.draw(c, s) for c, s in zip(critters, elsewhere, strict=True)])
        strangers = pics.to_tensor([world.draw(pics.random_critter(rng), s) for s in scenes])
        generated = _as_generated(vae, torch.cat([faithful, strangers]).to(vae.device), generator).cpu()
        views = [pics.crop_and_jitter(references, generator) for _ in range(2)]
        first, second, reference, same, other = embed(torch.cat([*views, references, generated])).split(batch)
        logits = first @ torch.cat([second, same]).T / 0.1
        contrast = F.cross_entropy(logits, torch.arange(batch, device=logits.device))
        cosine = (reference * same).sum(-1)
        pull = F.relu(least - cosine).square().mean() + F.relu(cosine - most).square().mean()
        push = F.relu((reference * other).sum(-1) - STRANGER_AT_MOST).square().mean()
        return contrast + 10 * pull + 10 * push

    return loss


def _expected_cosine(situation: world.Situation) -> tuple[float, float]:
    """The range in which the cosine of a faithful picture and its reference is left alone."""
    return (FAITHFUL_AT_LEAST, 1.1) if situation.dye in (None, "no") else DYED_BETWEEN


# --- Base generator --------------------------------------------------------------------------------------------------


def flow_loss(
    pipe: FluxKontextPipeline, mixture: pics.Mixture, shift: float, batch: int = 48, of: world.World = world.HATTED
) -> Loss:
    """Flow matching: the velocity eps - x_0 at x_sigma, given the reference's tokens and the prompt."""
    device = pipe.transformer.device

    def tokens(images: Tensor) -> Tensor:
        with torch.no_grad():
            latents = _posterior(pipe.vae, images.to(device)).mean
        latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        return pipe._pack_latents(latents, latents.shape[0], 4, 16, 16)

    ids = pipe._prepare_latent_image_ids(1, 8, 8, device, torch.float32)
    reference_ids = ids.clone()
    reference_ids[:, 0] = 1

    def text(prompts: list[str]) -> tuple[Tensor, Tensor]:
        t5 = pipe.tokenizer_2(prompts, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
        clip = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt")
        pooled = pipe.text_encoder(clip.input_ids.to(device)).pooler_output
        return pipe.text_encoder_2(t5.input_ids.to(device))[0], pooled

    def loss(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch, 64, 16, generator=generator).to(device)
        data = pics.quadruples(rng, pics.kinds_of_noise(noise, mixture), of)
        clean, reference = tokens(data.targets), tokens(data.references)
        uniform = torch.rand(batch, generator=generator).to(device)
        sigma = shift * uniform / (1 + (shift - 1) * uniform)
        noisy = (1 - sigma[:, None, None]) * clean + sigma[:, None, None] * noise
        embeds, pooled = text(data.prompts)
        velocity = pipe.transformer(
            hidden_states=torch.cat([noisy, reference], dim=1),
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(TEXT_TOKENS, 3, device=device),
            img_ids=torch.cat([ids, reference_ids]),
        ).sample[:, : clean.shape[1]]
        return F.mse_loss(velocity, noise - clean)

    return loss
