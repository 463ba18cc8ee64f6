"""A pipeline without numbers: its models on the meta device, in the shapes that their configurations say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin

from customized_grpo.files.pretrained import loading
from customized_grpo.policies.architectures import configuration


def sketched(
    pipeline: Any, parts: Mapping[str, Any], path: str | Path, dtype: torch.dtype, device: str = "meta"
) -> Any | None:
    """A pipeline of diffusers with these models, by name their classes, and without tokenizers and scheduler.

    device  "meta", or where the models get the random weights of their constructors

    None if the configurations of `path`, a folder or hub id, are not known on this machine. Raises ModelError if they
    are damaged.
    """
    configs, index = {name: configuration(path, name) for name in parts}, configuration(path)
    if index is None or None in configs.values():
        return None
    fields = list(signature(pipeline.__init__).parameters.values())[1:]  # without self
    absent = {field.name: None for field in fields if field.default is Parameter.empty}
    optional = [field.name for field in fields if field.default not in (None, Parameter.empty)]
    settings = {name: index[name] for name in optional if name in index}
    with loading(path):
        models = {name: made(kind, configs[name], dtype, device) for name, kind in parts.items()}
        return pipeline(**(absent | settings | models))


def made(kind: Any, config: Any, dtype: torch.dtype, device: str) -> Any:
    """A model of diffusers or transformers with the weights that its constructor gives it, made in place in `dtype`:
    a model that just fits a device would not in float32."""
    with torch.device(device), _precision(dtype):
        model = kind.from_config(config) if issubclass(kind, ConfigMixin) else kind(kind.config_class(**config))
    return model.to(dtype)  # what a constructor makes in float32 all the same


@contextmanager
def _precision(dtype: torch.dtype) -> Iterator[None]:
    """A block in which new tensors have this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
