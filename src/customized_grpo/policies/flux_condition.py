"""What FLUX.1-Kontext generates from: encoded prompts and references, batched by their number of references.

Positions are triplets (image, row, column). The generated picture is image 0; the references are images 1, 2, ... in
the order of `Sample.references`, each with its own rows and columns from 0. Source: FLUX.1 Kontext, arXiv 2506.15742,
section 3: u = (0, h, w) for the target, (i, h, w) for context image i. diffusers' `FluxKontextPipeline` takes one
reference and also makes it image 1. The released FLUX.1-Kontext-dev was trained with one reference, so a checkpoint or
its adapter must have learnt images 2, 3, ... first. (ComfyUI calls these positions "index", for models trained with
several references; for others it places the references side by side on image 1, "offset".)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FluxEntry:
    """One sample: text [L, C] and pooled [C], packed tokens [R, D] of its references and their positions [R, 3]."""

    text: Tensor
    pooled: Tensor
    reference: Tensor
    reference_ids: Tensor
    references: int  # how many; all pictures have the policy's size, so this alone decides the shapes


@dataclass(frozen=True, eq=False)
class Bucket:
    """Entries of equal shapes, stacked: text [b, L, C], pooled [b, C], reference [b, R, D], reference_ids [R, 3]."""

    rows: Tensor  # [b], their indices in the condition
    text: Tensor
    pooled: Tensor
    reference: Tensor
    reference_ids: Tensor


@dataclass(frozen=True, eq=False)
class FluxCondition:
    """Entries in order, and the picture's size in pixels. `repeat` shares entries and copies no tensor."""

    entries: tuple[FluxEntry, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.entries)

    def repeat(self, count: int) -> FluxCondition:
        return replace(self, entries=tuple(entry for entry in self.entries for _ in range(count)))

    def __getitem__(self, part: slice | Tensor) -> FluxCondition:
        part = part.cpu() if isinstance(part, Tensor) else part
        chosen = torch.arange(len(self))[part].tolist()  # indices, slices and masks mean what they mean in torch
        return replace(self, entries=tuple(self.entries[row] for row in chosen))

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The entries by number of references: one forward pass each. Stacked once, at the first of many steps."""
        rows = defaultdict(list)
        for row, entry in enumerate(self.entries):
            rows[entry.references].append(row)
        return tuple(self._bucket(chosen) for chosen in rows.values())

    def _bucket(self, rows: list[int]) -> Bucket:
        entries = [self.entries[row] for row in rows]
        return Bucket(
            torch.tensor(rows, device=entries[0].text.device),
            torch.stack([entry.text for entry in entries]),
            torch.stack([entry.pooled for entry in entries]),
            torch.stack([entry.reference for entry in entries]),
            entries[0].reference_ids,
        )
