"""What a batch of pictures is generated from: encoded prompts and references, batched by the references' sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Grid: TypeAlias = tuple[int, int]  # rows and columns of a picture's tokens


@dataclass(frozen=True, eq=False)
class Entry:
    """One sample, encoded.

    tensors     by name, tokens first: for instance text [L, C], and the tokens of all references [R, D]
    references  the size of each reference in tokens. Together with the picture's size it decides all positions
    """

    tensors: Mapping[str, Tensor]
    references: tuple[Grid, ...]


@dataclass(frozen=True, eq=False)
class Bucket:
    """Entries whose references have equal sizes: what one forward pass can take.

    rows     [b], their indices in the condition
    tensors  [b, ...] by name; shorter ones are padded with zeros
    lengths  by name, how much of each entry's tensor is no padding
    """

    rows: Tensor
    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]]
    references: tuple[Grid, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def mask(self, name: str) -> Tensor | None:
        """What of a tensor is no padding [b, L], bool; None if nothing was padded."""
        lengths = self.lengths[name]
        if len(set(lengths)) == 1:
            return None
        tensor = self.tensors[name]
        places = torch.arange(tensor.shape[1], device=tensor.device)
        return places < torch.tensor(lengths, device=tensor.device)[:, None]


@dataclass(frozen=True, eq=False)
class EncodedSamples:
    """A `Condition`: entries in order, and the pictures' size in pixels. `repeat` shares entries, without copies."""

    entries: tuple[Entry, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.entries)

    def repeat(self, count: int) -> EncodedSamples:
        return replace(self, entries=tuple(entry for entry in self.entries for _ in range(count)))

    def __getitem__(self, part: slice | Tensor) -> EncodedSamples:
        part = part.cpu() if isinstance(part, Tensor) else part
        chosen = torch.arange(len(self))[part].tolist()  # indices, slices and masks mean what they mean in torch
        return replace(self, entries=tuple(self.entries[row] for row in chosen))

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """One forward pass each. Stacked once, at the first of many steps."""
        rows = defaultdict(list)
        for row, entry in enumerate(self.entries):
            rows[entry.references].append(row)
        return tuple(self._bucket(chosen) for chosen in rows.values())

    def _bucket(self, rows: list[int]) -> Bucket:
        entries = [self.entries[row].tensors for row in rows]
        return Bucket(
            torch.tensor(rows, device=next(iter(entries[0].values())).device),
            {name: _stack([tensors[name] for tensors in entries]) for name in entries[0]},
            {name: tuple(len(tensors[name]) for tensors in entries) for name in entries[0]},
            self.entries[rows[0]].references,
        )


def _stack(tensors: list[Tensor]) -> Tensor:
    equal = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if equal else pad_sequence(tensors, batch_first=True)
