"""Encoded prompts and references on disk, so that the next run need not encode them again.

A file is named by a hash of everything that its tensors follow from, and holds a hash of the tensors themselves: what
was cut short, damaged or renamed is found when it is read, and computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from customized_grpo.errors import UsageError

Tensors = dict[str, Tensor]
CHECKSUM = "checksum"  # the name in the file, beside those of the tensors


class ConditionCache:
    """A folder of safetensors files; several processes may use it at once.

    folder  made at the first write
    Raises ValueError where `folder` is a file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"condition cache {folder}: not a folder; name one, or a path where one can be made")

    def get(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """The tensors of `key` (from `content_key`), on the CPU where they were on disk; else computed and written."""
        tensors = self._read(key)
        if tensors is None:
            tensors = compute()
            self._write(key, tensors)
        return tensors

    def _read(self, key: str) -> Tensors | None:
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            tensors = load(file.read_bytes())
        except SafetensorError:  # cut short or garbled; whoever asked writes it anew
            return None
        stored = tensors.pop(CHECKSUM, None)
        whole = stored is not None and torch.equal(stored, _checksum(key, tensors))
        return tensors if whole else None

    def _write(self, key: str, tensors: Tensors) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        aside = self.folder / f".{key}.{uuid4().hex}.part"  # a name of its own: other processes write here too
        try:
            aside.write_bytes(save(tensors | {CHECKSUM: _checksum(key, tensors)}))
            aside.replace(self._file(key))  # os.replace: readers see the old file or the new one, whole
        finally:
            aside.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def content_key(*parts: str | bytes | int) -> str:
    """A name for what follows from `parts`, in hexadecimal; other parts, or parts divided otherwise, have another."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)} ".encode() + content)
    return digest.hexdigest()


def model_identity(modules: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> str:
    """A hash of every weight of `modules` by name, and of `settings` (JSON): no two models share it.

    Wherever a model lies, it is the same; retrained in place, it is another. About 1 s per 2 GB of weights.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part, module in modules.items():
        _update(digest, {f"{part}.{name}": weight for name, weight in module.state_dict().items()})
    return digest.hexdigest()


def _checksum(key: str, tensors: Tensors) -> Tensor:
    """SHA-256 as a tensor of bytes [32]: safetensors notices a cut, but not a changed byte."""
    digest = hashlib.sha256(key.encode())
    _update(digest, tensors)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _update(digest: Any, tensors: Tensors) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
        digest.update(content.numpy().data)
