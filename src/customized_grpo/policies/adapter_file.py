"""An adapter's file, checked before it reaches a model: safetensors, finite, and made for its layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE, find_adapter
from customized_grpo.files.durable import reason_of
from customized_grpo.files.paths import is_file
from customized_grpo.files.pretrained import ModelError

if TYPE_CHECKING:
    from torch import Tensor

PEFT_CONFIG = "adapter_config.json"  # beside the adapters that peft writes: their alpha, among other things
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # the same, in the head of the files that diffusers writes
IN_HEAD = "its metadata"  # where a message says that they stand
TRANSFORMER = "transformer."  # prefix of its layers' names in a pipeline's adapter
PARTS = (TRANSFORMER, "unet.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")  # of pipelines with adapters
OTHER_MODEL = "name the model that it was trained on"


@dataclass(frozen=True)
class Adapter:
    """An adapter's file: its tensors on the CPU, and what it says about them, as fields of peft's LoraConfig.

    configs  by where they stand: in the file's head, or in a file beside it
    """

    file: Path
    tensors: dict[str, Tensor]
    configs: dict[str, dict[str, Any]]

    @property
    def by_diffusers(self) -> bool:
        """Whether a pipeline has written the file, as `save_adapter` does: with diffusers' names and its metadata."""
        return IN_HEAD in self.configs and any(name.startswith(TRANSFORMER) for name in self.tensors)

    @property
    def place(self) -> Path:
        """The folder of a file with the usual name, or the file: as a user names it."""
        return self.file.parent if self.file.name == ADAPTER_FILE else self.file

    def unusable(self, problem: str) -> ModelError:
        return ModelError(f"the adapter in {self.place} cannot be used: {problem}; save it again as a plain LoRA")

    def misfit(self, problem: str, remedy: str = OTHER_MODEL) -> ModelError:
        return ModelError(f"the adapter in {self.place} does not fit this model: {problem}; {remedy}")


def read_adapter(path: Path) -> Adapter:
    """The adapter in a file, or where `find_adapter` finds one.

    Raises ModelError if the file is missing, unreadable or incomplete, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    place = find_adapter(path)
    file = place / ADAPTER_FILE if place.is_dir() else place
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            head = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}); copy it again, or use an older checkpoint") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():  # float8 has no isfinite
            raise ModelError(f"{file}: {name} holds NaN or infinities; use an adapter saved before that happened")
    return Adapter(file, tensors, dict(_configs(file, head)))


def adapter_digest(adapter: Path) -> str:
    """Digest of the weights in a folder or file and of their scale: the path may hold another adapter tomorrow.

    Raises UsageError if a file cannot be read.
    """
    weights = hashlib.sha256()
    files = sorted(adapter.glob("*.safetensors")) if adapter.is_dir() else [adapter]
    config = (adapter if adapter.is_dir() else adapter.parent) / PEFT_CONFIG
    for file in [*files, *([config] if config.is_file() else [])]:
        try:
            weights.update(file.read_bytes())
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}; check its permissions") from None
    return weights.hexdigest()[:16]


def _configs(file: Path, head: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if DIFFUSERS_CONFIG in head:
        stored = _read_config(f"{file}: {DIFFUSERS_CONFIG}", head[DIFFUSERS_CONFIG])
        # A pipeline writes the settings of each part under its name; a transformer alone writes its own as they are.
        of_pipeline = any(name.startswith(PARTS) for name in stored)
        own = {name.removeprefix(TRANSFORMER): value for name, value in stored.items() if name.startswith(TRANSFORMER)}
        if own or not of_pipeline:
            yield IN_HEAD, own or stored
    beside = file.parent / PEFT_CONFIG
    if is_file(beside):
        try:
            content = beside.read_bytes()
        except OSError as error:
            raise ModelError(f"{beside} cannot be read ({reason_of(error)}); check its permissions") from None
        yield PEFT_CONFIG, _read_config(str(beside), content)


def _read_config(where: str, content: str | bytes) -> dict[str, Any]:
    try:
        config: Any = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{where} does not hold keys and values in JSON; copy the adapter again")
    return config


def sort_metadata(file: Path) -> None:
    """Sort the metadata in the head of a file: safetensors writes them in random order, and equal adapters are to be
    equal files."""
    with file.open("r+b") as content:
        length = int.from_bytes(content.read(8), "little")
        head: dict[str, Any] = json.loads(content.read(length))
        in_order = {"__metadata__": dict(sorted(head.pop("__metadata__", {}).items())), **head}
        text = json.dumps(in_order, ensure_ascii=False, separators=(",", ":")).encode().ljust(length)
        if len(text) == length:  # the tensors' offsets stay
            content.seek(8)
            content.write(text)


def check_same(adapter: Adapter, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ModelError unless `tensors` have the names and shapes of the adapter that they are loaded into."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"{name} is not part of this adapter" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(
            f"the adapter in {adapter.place} does not fit this model: {problems[0]}{more}; set adapter.rank, "
            "adapter.targets and model as they were when it was trained"
        )


@contextmanager
def translating(adapter: Adapter) -> Iterator[None]:
    """Turns what diffusers raises for an adapter in a format that it does not know into ModelError."""
    try:
        yield
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise ModelError(
            f"diffusers cannot read the adapter in {adapter.place} ({type(error).__name__}: {message}); save it "
            "again in diffusers' format"
        ) from error
