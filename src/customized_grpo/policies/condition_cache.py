"""Encoded prompts and references on disk, so that later runs need not encode them again.

A file is named by a hash of everything that determines its tensors, and holds a hash of the tensors themselves. A file
that was cut short, damaged or renamed is detected when it is read, and its tensors are computed again.
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
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from customized_grpo.files.durable import check_folder, make_folder, saving

Tensors = dict[str, Tensor]
CHECKSUM = "checksum"  # its name among the tensors of a file


class ConditionCache:
    """A folder of safetensors files; several processes may use it at once.

    folder  made at the first write

    Raises UsageError if `folder` is a file, or cannot be written to.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        check_folder(self.folder, "model.condition_cache")

    def get(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """The tensors of `key` (from `content_key`): from disk, then on the CPU, or else computed and written.

        Raises SavingError if they cannot be written.
        """
        tensors = self._read(key)
        if tensors is None:
            tensors = compute()
            self._write(key, tensors)
        return tensors

    def _read(self, key: str) -> Tensors | None:
        """The tensors in the file of `key`; None if it is missing, unreadable or damaged."""
        try:
            tensors = load(self._file(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        stored = tensors.pop(CHECKSUM, None)
        intact = stored is not None and torch.equal(stored, _checksum(key, tensors))
        return tensors if intact else None

    def _write(self, key: str, tensors: Tensors) -> None:
        make_folder(self.folder)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        aside = self.folder / f".{key}.{uuid4().hex}.part"  # a unique name: other processes may write the same key
        with saving(self._file(key)):
            try:
                aside.write_bytes(save(tensors | {CHECKSUM: _checksum(key, tensors)}))
                aside.replace(self._file(key))  # atomic: readers see either the old file or the complete new one
            finally:
                aside.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def content_key(*parts: str | bytes | int) -> str:
    """A hash of the sequence `parts`, in hexadecimal; types and boundaries of the parts count."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)} ".encode() + content)
    return digest.hexdigest()


def model_identity(modules: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> str:
    """A hash of every weight of `modules` by name, and of `settings` (JSON).

    It does not depend on where the model is stored, and it changes if the model is retrained in place. Takes about 1 s
    per 2 GB of weights.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part, module in modules.items():
        _update(digest, {f"{part}.{name}": weight for name, weight in module.state_dict().items()})
    return digest.hexdigest()


def _checksum(key: str, tensors: Tensors) -> Tensor:
    """SHA-256 as a tensor of bytes [32]: safetensors detects a truncated file, but not a changed byte."""
    digest = hashlib.sha256(key.encode())
    _update(digest, tensors)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _update(digest: Any, tensors: Tensors) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.dequantize() if is_traceable_wrapper_subclass(tensor) else tensor  # torchao's
        content = plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
        digest.update(content.numpy().data)
