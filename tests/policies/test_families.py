"""Model families: with one file and one entry in `FAMILIES`, a new family works in every command."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import customized_grpo
from customized_grpo.config import RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import FAMILIES, adapter_size, architectures, load_policy
from customized_grpo.training.assemble import assemble
from program import start
from toy_family import ToyPolicy

PACKAGE = Path(customized_grpo.__file__).parent


@pytest.fixture
def toy(tmp_path: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings for a checkpoint of a toy family, registered as CONTRIBUTING describes: by an entry in `FAMILIES`."""
    monkeypatch.setitem(FAMILIES, "ToyPipeline", "toy_family:ToyPolicy")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    size = ("model.height=32", "model.width=32")
    return make_config(f"model.path={tmp_path / 'toy'}", *size, "device=cpu", "updates=3", "evaluation.every=3")


def test_the_pipeline_class_of_a_checkpoint_chooses_the_family(toy: RunConfig, make_config: Callable[..., RunConfig]):
    assert isinstance(load_policy(toy.model, "cpu"), ToyPolicy)
    assert type(load_policy(make_config().model, "cpu")).__name__ == "FluxKontextPolicy"


@pytest.mark.parametrize("checkpoint", yaml.safe_load(architectures.PUBLISHED.read_text())["checkpoints"])
def test_a_dry_run_knows_the_adapter_of_every_published_checkpoint(checkpoint: str):
    """Their configurations leave out what is the class's default, and a dry run reads only configurations."""
    recipe = "uno-paper" if checkpoint == "black-forest-labs/FLUX.1-dev" else "kontext"
    config = load_config(recipe, [f"model.path={checkpoint}", "model.base_adapter=null", "adapter.targets=null"])
    size = adapter_size(config.model, config.adapter)
    assert size is not None
    assert size > 10_000_000
    with pytest.raises(UsageError, match="512x520 pixels; this model needs multiples of 16"):
        adapter_size(config.model.model_copy(update={"height": 520}), config.adapter)


def test_a_registered_family_trains_resumes_generates_and_is_probed(
    toy: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trainer = assemble(toy)
    trainer.train()
    weights = trainer.policy.trainable_parameters()["shift"].detach()
    assert weights.abs().max() > 0
    assert [row["ratio_mean"] for row in trainer.directory.logs()[0]] == [1.0] * toy.updates
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
    few = ("--prompts", 2, "--draws", 2, "--output", tmp_path / "probe")
    answer = start(("probe", toy.output, "--adapter", toy.output, *few), monkeypatch, capsys)
    assert answer.code == 0, answer.error


def test_a_checkpoint_of_an_unknown_family_is_refused(make_config: Callable[..., RunConfig], tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    with pytest.raises(ModelError, match=r"is a StableDiffusion3Pipeline.*supported: FluxKontextPipeline"):
        load_policy(make_config(f"model.path={tmp_path}").model, "cpu")


def test_no_code_outside_policies_names_a_family():
    """Neither by import nor by name. Only `critters/build`, which trains the built-in model, may."""
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
