"""Encoders of transformers, made ready to score pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_encoder(kind: Any, model: str | Path, device: torch.device) -> Any:
    """A model of the class `kind`, on the device, without dropout and gradients.

    Any in and out: transformers' annotations leave out what its models take and return.
    """
    return kind.from_pretrained(model).to(device).eval().requires_grad_(False)
