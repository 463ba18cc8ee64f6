"""What the configurations of a checkpoint say, without its weights and without the network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from customized_grpo.files.pretrained import find_offline, read_json

PUBLISHED = Path(__file__).parent / "architectures.yaml"


def configuration(model: str | Path, part: str = "") -> dict[str, Any] | None:
    """The configuration of a pipeline's part, or model_index.json of the pipeline itself.

    It is that of the folder or the hub's cache; of a checkpoint that is not on this machine, what `PUBLISHED` says.
    None if that does not know it. Raises ModelError for a damaged file.
    """
    file = find_offline(model, f"{part}/config.json" if part else "model_index.json")
    if file is not None:
        return read_json(file)
    return _published().get(str(model), {}).get(part or "model_index")


def is_distilled(model: str | Path) -> bool:
    """Whether a checkpoint's configuration says that it is distilled: few steps, no guidance. Raises ModelError."""
    return bool((configuration(model) or {}).get("is_distilled", False))


def published_license(model: str) -> dict[str, str] | None:
    """The licence of a published checkpoint in the fields of a model card on the Hub; None if we do not know it."""
    return _published().get(model, {}).get("license")


@cache
def _published() -> dict[str, Any]:
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["checkpoints"]
