"""`model.compile`: compiled blocks give the pictures of the others up to rounding, and train as exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.training.trainer import Trainer
from runs import NEEDS_COMPILER, SMALL

MakeTrainer = Callable[..., Trainer]
SETTINGS = (*SMALL, "objective.kl=.1", "save_every=1")  # the divergence takes a pass without the adapter


def test_without_a_compiler_it_is_refused(make_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"^model.compile=true needs a C\+\+ compiler, .*; set model.compile=false$"):
        make_policy(compile=True)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_exact_with_compiled_blocks(
    checkpointing: bool, make_trainer: MakeTrainer, adapter_of: Callable[..., Tensor], tmp_path: Path
):
    settings = (*SETTINGS, f"model.gradient_checkpointing={checkpointing}".lower())
    compiled = (*settings, "model.compile=true")
    plain, whole = (
        make_trainer(*settings, "updates=2", f"output={tmp_path / 'plain'}"),
        make_trainer(*compiled, "updates=2", f"output={tmp_path / 'whole'}"),
    )
    plain.train()
    first = whole.step()
    assert first["ratio_mean"] == 1.0
    graphs = counters["stats"]["unique_graphs"]
    whole.step()
    assert counters["stats"]["unique_graphs"] == graphs  # neither other batches nor a switched adapter compile again
    make_trainer(*compiled, "updates=1").train()
    resumed = make_trainer(*compiled, "updates=2", resume=True)
    resumed.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    torch.testing.assert_close(adapter_of(whole.policy), adapter_of(plain.policy), atol=2e-3, rtol=0)
    names = [load_file(tmp_path / name / "adapter" / ADAPTER_FILE).keys() for name in ("plain", "run")]
    assert names[0] == names[1]
