"""A model's files that are broken or edited: whatever a library raises for them, the user gets one line."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel

from customized_grpo.critters.weights import FOLDER
from customized_grpo.files import pretrained
from customized_grpo.files.pretrained import ModelError, check_complete, find, load_part, loading, model_type
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "generator", tmp_path / "model"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "text_encoder/config.json",
            {"num_hidden_layers": "many"},
            "model, text_encoder cannot be loaded: .*num_hidd",
        ),
        ("transformer/config.json", {"num_layers": [1]}, "model, transformer cannot be loaded: TypeError: "),
        ("tokenizer/tokenizer.json", {"version": "x"}, "model cannot be loaded: .*Unknown tokenizer version 'x'"),
        ("model_index.json", {"vae": ["diffusers", 1]}, "model cannot be loaded: TypeError: "),
    ],
)
def test_an_edited_file_of_a_model(
    file: str,
    change: dict[str, Any],
    message: str,
    generator: Path,
):
    edit(generator / file, lambda content: content.update(change))
    with pytest.raises(ModelError, match=f"{message}.*; check its files, or download the model again$") as refused:
        FluxKontextPolicy.load(generator, Model(), "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "is not JSON: Expecting property name"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not JSON: brackets are nested too deeply"),
        (b"[1]", "holds a list instead of keys and values"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_broken_json_file(content: bytes, problem: str, tmp_path: Path):
    for name, read in (("model_index.json", check_complete), ("config.json", model_type)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name} {problem}.*; download the model again$"):
            read(tmp_path)


def test_an_index_without_the_parts_of_a_model(generator: Path):
    edit(generator / "model_index.json", lambda content: content.update(vae=[], other=["diffusers", "Other"]))
    with pytest.raises(ModelError, match=r"model is incomplete: other missing; download the model again$"):
        check_complete(generator)


@pytest.mark.parametrize("model", ["x" * 300, "a\0b", "a/b/c"])
def test_a_name_that_is_neither_a_folder_nor_a_hub_id(model: str):
    check_complete(model)
    with pytest.raises(ModelError, match=r"is neither a folder nor a hub id, which is written owner/name$"):
        find(model, "config.json")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pretrained, "hf_hub_download", full)
    with pytest.raises(ModelError, match=r"^a/b cannot be downloaded: No space left on device$"):
        find("a/b", "config.json")


def test_memory_that_runs_out_is_not_the_models_fault():
    with pytest.raises(torch.OutOfMemoryError), loading("model"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_missing_weight_is_not_initialised_at_random(generator: Path):
    edit(generator / "text_encoder" / "config.json", lambda content: content.update(num_hidden_layers=3))
    with pytest.raises(
        ModelError, match=r"is incomplete: text_encoder has no weight \S+ and \d+ more; download the mo"
    ):
        load_part(CLIPTextModel, generator, "text_encoder")
