"""An adapter as tensors alone: which layers of a model it changes, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.adapter_file import TRANSFORMER

# The parts of a layer as diffusers and peft name them. A is [rank, inputs], B [outputs, rank].
DOWN, UP, BIAS, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
SAID_BY_TENSORS = {"use_dora": MAGNITUDE, "lora_bias": BIAS}  # fields of peft's LoraConfig


@dataclass(frozen=True)
class LoraTensors:
    """The update of each layer is alpha / rank * B A.

    tensors  by their names in diffusers: "transformer.<layer>.lora_A.weight" and so on
    alphas   by layer
    """

    tensors: dict[str, Tensor]
    alphas: dict[str, float]

    def part(self, layer: str, part: str) -> Tensor:
        return self.tensors[f"{TRANSFORMER}{layer}.{part}"]

    def rank(self, layer: str) -> int:
        return rank_of(self.part(layer, DOWN))

    def up_with_scale(self, layer: str) -> Tensor:
        """The layer's B, multiplied by alpha / rank: with it the layer needs no alpha. In float32 unless that is 1."""
        up, scale = self.part(layer, UP), self.alphas[layer] / self.rank(layer)
        return up if scale == 1 else up.float() * scale

    def beyond(self, parts: Iterable[str]) -> list[str]:
        """The names of the tensors that are none of these parts."""
        return sorted(key for key in self.tensors if split(key)[1] not in parts)

    def config(self) -> dict[str, Any]:
        """The fields of peft's LoraConfig. "^" keeps "proj_out" from matching "block.proj_out"."""
        ranks = {layer: self.rank(layer) for layer in self.alphas}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, self.alphas))
        parts = {split(key)[1] for key in self.tensors}
        return {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {f"^{layer}": own for layer, own in ranks.items() if own != rank},
            "alpha_pattern": {f"^{layer}": own for layer, own in self.alphas.items() if own != alpha},
            "target_modules": sorted(self.alphas),
            **{name: part in parts for name, part in SAID_BY_TENSORS.items()},
        }


def joined(first: LoraTensors, second: LoraTensors) -> LoraTensors:
    """One adapter whose update of each layer is the sum of both. Both have A and B alone.

    B1 A1 + B2 A2 = [B1 B2] [A1; A2], so a layer of both gets the sum of their ranks. That is also its alpha, as the
    scales are in B. A layer of one of them stays as it is.
    """
    tensors, alphas = {**second.tensors, **first.tensors}, {**second.alphas, **first.alphas}
    for layer in first.alphas.keys() & second.alphas.keys():
        downs, ups = zip(
            *((each.part(layer, DOWN), each.up_with_scale(layer)) for each in (first, second)), strict=True
        )
        tensors[f"{TRANSFORMER}{layer}.{DOWN}"] = torch.cat(downs)
        tensors[f"{TRANSFORMER}{layer}.{UP}"] = torch.cat(ups, dim=1)
        alphas[layer] = sum(map(rank_of, downs))
    return LoraTensors(tensors, alphas)


def split(key: str) -> tuple[str, str]:
    """A name of diffusers in its layer and its part."""
    part = next(each for each in (DOWN, UP, BIAS, MAGNITUDE) if key.endswith(f".{each}"))
    return key.removeprefix(TRANSFORMER).removesuffix(f".{part}"), part


def rank_of(down: Tensor) -> int:
    return down.shape[0] if down.ndim else 0
