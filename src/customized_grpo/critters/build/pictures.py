"""Batches of drawn pictures for the training of the built-in models: pure functions of a numpy generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from customized_grpo.critters import world

# The critters that the base and the encoders are trained on; RL and tests use others (`critters.samples`).
PRETRAINING_CRITTERS = range(0, 1_000_000)
# The critter that a base draws when it loses the subject: one per scene, as real bases fall back on a typical dog.
STOCK_CRITTERS = dict(zip(world.SCENES, range(len(world.SCENES)), strict=True))

# Shares of the four kinds of picture: faithful, copied, drifted, wrong.
Mixture = dict[str, float]


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] pictures -> [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_critter(rng: np.random.Generator) -> int:
    return int(rng.integers(PRETRAINING_CRITTERS.start, PRETRAINING_CRITTERS.stop))


def random_situation(
    rng: np.random.Generator, *, not_scene: str | None = None, of: world.World = world.HATTED
) -> world.Situation:
    while True:
        situation = of.situations[rng.integers(len(of.situations))]
        if situation.scene != not_scene:
            return situation


def reference_situation(
    rng: np.random.Generator, *, not_scene: str | None = None, of: world.World = world.HATTED
) -> world.Situation:
    """The situation of a reference: in the centre, without hat or dye."""
    return of.reference(random_situation(rng, not_scene=not_scene, of=of).scene)


def renders(
    rng: np.random.Generator, count: int, of: world.World = world.HATTED
) -> tuple[Tensor, list[world.Situation]]:
    situations = [random_situation(rng, of=of) for _ in range(count)]
    return to_tensor([world.draw(random_critter(rng), situation) for situation in situations]), situations


def mosaics(rng: np.random.Generator, count: int) -> Tensor:
    """Random colours in four large fields and many single cells: pictures unlike renders, for the VAE."""
    size = (world.CANVAS, world.CANVAS, 3)
    fields = rng.integers(0, 256, (count, 2, 2, 3)).repeat(8, 1).repeat(8, 2)
    speckle = np.where(rng.random((count, *size[:2], 1)) < 0.3, rng.integers(0, 256, (count, *size)), fields)
    return to_tensor(list(speckle.astype(np.uint8).repeat(world.CELL, 1).repeat(world.CELL, 2)))


@dataclass(frozen=True)
class Quadruple:
    """A batch for the base: references and targets [N, 3, 32, 32] in [-1, 1], prompts and kinds of picture."""

    references: Tensor
    targets: Tensor
    prompts: list[str]
    kinds: list[str]


def target_of_kind(kind: str, critter: int, wanted: world.Situation, shown: world.Situation) -> np.ndarray:
    """The picture of this kind for a critter, uint8 [32, 32, 3].

    wanted   the situation of the prompt
    shown    the situation of the reference
    """
    if kind == "faithful":
        return world.draw(critter, wanted)
    if kind == "copied":
        return world.draw(critter, shown)
    if kind == "drifted":  # the prompt is right, the critter is not
        return world.draw(STOCK_CRITTERS[wanted.scene], wanted)
    if kind == "wrong":
        return world.draw(STOCK_CRITTERS[shown.scene], shown)
    raise ValueError(f"unknown kind of picture {kind!r}; known: faithful, copied, drifted, wrong")


# Two directions in the space of packed noise [tokens, 16]: one pattern in every token, barely visible in pictures.
_STRIPES = torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat(4)
_CHECKS = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(4)


def kinds_of_noise(noise: Tensor, mixture: Mixture) -> list[str]:
    """The kind of picture for each noise [N, tokens, 16]: the seed decides, as with real bases.

    One direction of the noise decides between the situations of prompt and reference, another between the subject and
    the stock critter. If the kind were independent of the noise, a network of this size would blend the kinds.
    """
    tokens = noise.shape[1]
    situation, subject = (
        torch.special.ndtr((noise.cpu() @ pattern).sum(dim=1) / math.sqrt(16 * tokens)).clamp(max=1 - 2**-24).tolist()
        for pattern in (_STRIPES, _CHECKS)
    )
    share = {kind: mixture.get(kind, 0.0) for kind in ("faithful", "copied", "drifted", "wrong")}
    obeying = share["faithful"] + share["drifted"]
    kinds = []
    for u, v in zip(situation, subject, strict=True):
        own, other, total = ("faithful", "drifted", obeying) if u < obeying else ("copied", "wrong", 1 - obeying)
        kinds.append(own if v < share[own] / total else other)
    return kinds


def quadruples(rng: np.random.Generator, kinds: list[str], of: world.World = world.HATTED) -> Quadruple:
    references, targets, prompts = [], [], []
    for kind in kinds:
        critter, wanted = random_critter(rng), random_situation(rng, of=of)
        shown = reference_situation(rng, not_scene=wanted.scene, of=of)
        references.append(world.draw(critter, shown))
        targets.append(target_of_kind(kind, critter, wanted, shown))
        prompts.append(wanted.prompt)
    return Quadruple(to_tensor(references), to_tensor(targets), prompts, kinds)


def crop_and_jitter(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One view of each picture: a random crop (down to 70 % of the side), brightness, contrast and pixel noise."""
    count = pictures.shape[0]
    side = 0.7 + 0.3 * torch.rand(count, generator=generator)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    views = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    gain = 1 + 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1)
    offset = 0.1 * (torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1)
    return (views * gain + offset + 0.05 * torch.randn(views.shape, generator=generator)).clamp(-1, 1)


def blemish(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The flaws of generated pictures: slight blur and noise."""
    count = pictures.shape[0]
    share = 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    noise = 0.12 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return (pictures * (1 - share) + blurred * share + noise).clamp(-1, 1)
