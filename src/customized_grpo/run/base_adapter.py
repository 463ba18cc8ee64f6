"""Whether `model.base_adapter` is still what a run was trained on: its path may hold another adapter tomorrow."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import checkpoints_of, find_adapter
from customized_grpo.files.json_text import read_json
from customized_grpo.policies.adapter_file import adapter_digest
from customized_grpo.sections import Model

BASE_ADAPTER = "base_adapter.json"  # in a run's folder, and beside each of its adapters


def base_digest(model: Model) -> str | None:
    """Digest of the base adapter; None if there is none. Raises ModelError or UsageError if it cannot be read."""
    return None if model.base_adapter is None else adapter_digest(find_adapter(Path(model.base_adapter)))


def base_adapter_file(model: Model) -> dict[str, str]:
    """What a run keeps, as text by name; {} without a base adapter. Raises as `base_digest`."""
    digest = base_digest(model)
    return {} if digest is None else {BASE_ADAPTER: json.dumps({"digest": digest}) + "\n"}


def check_base_adapter(model: Model, folder: Path) -> None:
    """Raises UsageError if the adapter in `folder` was trained on another base adapter than is there now.

    Adapters of other programs and of older versions do not say what they were trained on.
    """
    file = folder / BASE_ADAPTER
    if model.base_adapter is None or not file.is_file():
        return
    known = read_json(file, TypeAdapter(dict[str, str]), "restore it, or remove it").get("digest")
    if known != base_digest(model):
        raise UsageError(
            f"model.base_adapter: {model.base_adapter} is not what {folder} was trained on any more (its content was "
            f"{known}); put that one back"
        )


def check_own_base_adapter(model: Model, run: Path) -> None:
    """The same for a run that is resumed, by its last checkpoint."""
    for checkpoint in checkpoints_of(run)[-1:]:
        check_base_adapter(model, checkpoint)
