"""The seam for model families: whoever adds one writes a file and a line, and every command takes it."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import customized_grpo
from customized_grpo.config import RunConfig, load_config
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import FAMILIES, load_policy
from customized_grpo.training.assemble import assemble
from program import start
from toy_family import ToyPolicy

PACKAGE = Path(customized_grpo.__file__).parent


@pytest.fixture
def toy(tmp_path: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings for a checkpoint of a family that is registered here, by the one line that CONTRIBUTING asks for."""
    monkeypatch.setitem(FAMILIES, "Toy", ToyPolicy)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    size = ("model.height=32", "model.width=32")
    return make_config(f"model.path={tmp_path / 'toy'}", *size, "device=cpu", "updates=3", "evaluation.every=3")


def test_a_family_is_chosen_by_what_the_checkpoint_says(toy: RunConfig, make_config: Callable[..., RunConfig]):
    assert isinstance(load_policy(toy.model, "cpu"), ToyPolicy)
    assert type(load_policy(make_config().model, "cpu")).__name__ == "FluxKontextPolicy"


def test_a_registered_family_trains_resumes_and_generates(
    toy: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = assemble(toy)
    whole.train()
    weights = whole.policy.trainable_parameters()["shift"].detach()
    assert weights.abs().max() > 0
    assert [row["ratio_mean"] for row in whole.directory.logs()[0]] == [1.0] * toy.updates
    again = assemble(toy.model_copy(update={"output": str(tmp_path / "again"), "updates": 2}))
    again.train()
    longer = assemble(load_config(str(tmp_path / "again"), [f"updates={toy.updates}"]), resume=True)
    longer.train()
    assert torch.equal(longer.policy.trainable_parameters()["shift"], weights)
    folder = tmp_path / "pictures"
    reference = next((Path(toy.output) / "images").glob("reference-*.png"))
    options = ("--reference", reference, "--prompt", "a critter", "--output", folder, "--device", "cpu")
    answer = start(("generate", "--adapter", toy.output, *options), monkeypatch, capsys)
    assert (answer.code, len(list(folder.glob("*.png")))) == (0, 1), answer.error


def test_a_checkpoint_of_no_family_is_refused_with_what_is_supported(
    make_config: Callable[..., RunConfig], tmp_path: Path
):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(ModelError, match=r"is a StableDiffusion3Pipeline.*supported: FluxKontextPipeline"):
        load_policy(make_config(f"model.path={tmp_path}").model, "cpu")


def test_nobody_outside_the_room_names_a_family():
    """No import of a family's module, no name of one in code; `critters/build` trains one, so it has to name it."""
    families = {path.stem for path in (PACKAGE / "policies").glob("flux*.py")}
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name in ("policies", "build"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert families.isdisjoint((node.module or "").split(".")), file
            if isinstance(node, ast.Name):
                assert "kontext" not in node.id.lower(), (file, node.id)
                assert "flux" not in node.id.lower(), (file, node.id)
