"""Reference values of the method, worked out apart from this code (float32 accuracy)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "reference_values.json").read_text())


@pytest.fixture
def example(reference: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor([values]) for name, values in reference["advantages"].items()}
