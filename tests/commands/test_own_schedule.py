"""`sampling.shift: checkpoint` with weights by noise level, as the recipes for Kontext have it, in every command."""

import json
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.algorithm import TimeAwareWeights, progress_from_sigma, sigma_schedule
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model
from program import TINY, start
from runs import rows_of


@pytest.fixture
def settings(guided_checkpoint: Path) -> tuple[str, ...]:
    """A model whose schedule depends on the picture's size; training with 4 steps, users take 6."""
    return (
        *(f"model.path={guided_checkpoint}", "sampling.shift=checkpoint", "weighting.progress=sigma"),
        *("evaluation.num_steps=6", "evaluation.every=1", "evaluation.metrics=[]", "adapter.rank=2"),
        *("groups.prompts=1", "window.last=1", "data.held_out_samples=2"),
    )


def test_every_command_takes_the_checkpoints_own_schedule(
    settings: tuple[str, ...],
    guided_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    run, reference = tmp_path / "run", tmp_path / "reference.png"
    Image.new("RGB", (32, 32), "red").save(reference)
    probe = (*settings, "sampling.num_steps=8", "--prompts", 2, "--draws", 2, "--output", "probed")
    for command in (
        ("train", TINY, *settings, f"output={run}"),
        ("generate", "--reference", reference, "--prompt", "x", "--adapter", run, "--output", "pictures"),
        ("evaluate", run, "--cases", 2, "--output", "evaluated"),
        ("check-rewards", TINY, *settings, "--cases", 4),
        ("probe", TINY, *probe),
        ("report", run, "evaluated", "probed", "--output", "page.html"),
    ):
        answer = start(command, monkeypatch, capsys)
        assert answer.code == 0, (command[0], answer.error)
    sampling = json.loads((run / "adapter" / "sampling.json").read_text())
    assert (sampling["num_steps"], sampling["shift"]) == (6, "checkpoint")
    assert json.loads((tmp_path / "evaluated" / "settings.json").read_text())["sampling"] == sampling
    sigmas = FluxKontextPolicy.load(guided_checkpoint, Model(), "cpu").sigmas(4, "checkpoint")
    assert abs(sigmas[1] - sigma_schedule(4, 3.0)[1]) > 0.05  # another grid than the paper's
    (row,) = rows_of(run)
    weights = TimeAwareWeights().prompt_weight(progress_from_sigma(sigmas.double()))
    for step in row["steps"]:
        assert step["prompt_weight"] == pytest.approx(float(weights[step["step"]]), abs=1e-6)
