"""Identity by CLIP: cosine of image embeddings (CLIP-I of DreamBooth, arXiv 2208.12242)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from customized_grpo.rewards.clip import ClipFeatures
from customized_grpo.rewards.encoder import shared
from customized_grpo.rewards.identity import Identity


class ClipIdentity(Identity[ClipFeatures]):
    """Cosine in [-1, 1] of the embeddings of image and reference; `Identity` says what the settings mean."""

    def __init__(self, model: str | Path, *, device: torch.device, **settings: Any):
        super().__init__(shared(ClipFeatures, model, device), **settings)
