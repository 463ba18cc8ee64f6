"""Models, adapters and folders of runs that cannot be used: one line, exit code 2, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

from customized_grpo.critters.weights import FOLDER
from customized_grpo.files.pretrained import ModelError, find
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.policies.adapter_file import ADAPTER_FILE
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from program import TINY, Refusal

GENERATOR = FOLDER / "generator"


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, monkeypatch, capsys)


def photograph(file: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(file)


# --- models ----------------------------------------------------------------------------------------------------------


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def without_a_weight(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(weights(folder, part))
        del tensors[sorted(tensors)[3]]
        save_file(tensors, weights(folder, part), {"format": "pt"})

    return change


def cut(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = weights(folder, part)
        file.write_bytes(file.read_bytes()[:5000])

    return change


def as_a_pickle(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights(folder, part).unlink()
        (folder / part / "pytorch_model.bin").write_bytes(b"\x80\x04not read")

    return change


def another_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"{part} lacks a weight": (without_a_weight(part), f"model is incomplete: {part} has no weight ")
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2")
    },
    "a cut transformer": (cut("transformer"), "model, transformer cannot be loaded: "),
    "a cut text encoder": (cut("text_encoder"), "model, text_encoder cannot be loaded: "),
    "a pickle": (as_a_pickle("transformer"), "has its weights in pytorch_model.bin, a pickle, which could run any"),
    "no weights": (lambda folder: weights(folder, "vae").unlink(), "model, vae cannot be loaded: Error no file named"),
    "no part": (
        lambda folder: shutil.rmtree(folder / "vae"),
        "model is incomplete: vae missing; download the model again",
    ),
    "no tokens": (
        lambda folder: (folder / "tokenizer_2" / "tokenizer.json").unlink(),
        "tokenizer_2/tokenizer.json mi",
    ),
    "no config": (
        lambda folder: (folder / "text_encoder" / "config.json").unlink(),
        "text_encoder/config.json missing",
    ),
    "a broken config": (
        lambda folder: (folder / "vae" / "config.json").write_text("{"),
        "model, vae cannot be loaded: It looks like the config file",
    ),
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        "model is not the kind of model needed here: ",
    ),
    "a broken index": (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json is not JSON: "),
    "another class": (
        another_class,
        "model is a StableDiffusionPipeline, which is not supported; supported: FluxKontextPipeline",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_generator_that_cannot_be_used(kind: str, refused: Refusal):
    change, message = MODELS[kind]
    shutil.copytree(GENERATOR, refused.folder / "model")
    change(refused.folder / "model")
    said = refused.train("model.path=model")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("command", ["evaluate", "probe", "generate"])
def test_every_command_refuses_a_generator_that_is_not_whole(command: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    shutil.copytree(GENERATOR, refused.folder / "model")
    without_a_weight("vae")(refused.folder / "model")
    arguments = {
        "generate": (
            "--reference",
            "dog.png",
            "--prompt",
            "a dog",
            "--model",
            "model",
            "--size",
            32,
            "--device",
            "cpu",
        ),
        "evaluate": (TINY, "model.path=model", "--cases", 2, "--device", "cpu"),
        "probe": (TINY, "model.path=model", "--prompts", 2, "--draws", 2),
    }[command]
    assert refused(command, *arguments, "--output", "out").startswith("model is incomplete: vae has no weight ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("model.path=black-forest-labs/FLUX.1-Kontext-dve",),
            "black-forest-labs/FLUX.1-Kontext-dve is not a folder here",
        ),
        (("model.path=a/b/c",), "'a/b/c' is neither a folder nor a hub id, which is written owner/name"),
        (("model.path=",), "model.path: input should be a valid string, not None"),
        (("model.path=~/models/x",), "no model in ~/models/x; name a folder in the library's format, or a hub id"),
        (("rewards.identity.model=nobody/none",), "nobody/none is not a folder here, and the hub cannot be reached"),
        (("rewards.prompt.model=nobody/none",), "nobody/none is not a folder here, and the hub cannot be reached"),
        (("rewards.prompt.name=pickscore",), "yuvalkirstain/PickScore_v1 is not a folder here, and the hub cannot be"),
        (("rewards.prompt.name=hpsv3",), "Qwen/Qwen2-VL-7B-Instruct is not a folder here, and the hub cannot be"),
        ((f"rewards.identity.model={GENERATOR}",), "is not the kind of model needed here: it has no config.json"),
        (
            (f"rewards.prompt.model={FOLDER / 'dino'}",),
            "dino is a 'dinov2' checkpoint; this reward needs one of type clip",
        ),
        ((f"rewards.identity.model={FOLDER / 'clip'}",), "clip is a 'clip' checkpoint; use one of type dinov2"),
        (("model.height=30",), "pictures of 32x30 pixels; this model needs multiples of 4"),
        (
            ("adapter.targets=[to_q, nope]",),
            "adapter.targets: 'nope' matches no layer of this model; name linear layers",
        ),
        (("rewards.prompt.name=no_such_module:f",), "there is no module 'no_such_module'"),
        (("rewards.prompt.name=none.py:f",), "reward 'none.py:f': no file none.py"),
        (("rewards.prompt.name=os:nothing",), "os has no function 'nothing'"),
        (("model.condition_cache=dog.png",), "model.condition_cache dog.png: "),
    ],
)
def test_models_and_rewards_that_are_not_there(settings: tuple[str, ...], message: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    said = refused.train(*settings)
    assert message in said
    assert "\n" not in said


class Response:
    status_code, headers, request = 401, dict[str, str](), None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            GatedRepoError,
            "a/b is gated: accept its terms at https://huggingface.co/a/b, then log in with `hf auth login`",
        ),
        (
            RepositoryNotFoundError,
            "a/b is not a folder here, and the hub has no such public model: check the name,",
        ),
        (
            LocalEntryNotFoundError,
            "the hub cannot be reached: check the name, the network, and that HF_HUB_OFFLINE",
        ),
        (HfHubHTTPError, "a/b: the hub answers 500 Server Error; try again later"),
    ],
)
def test_what_the_hub_says_in_one_line(kind: Any, message: str, monkeypatch: pytest.MonkeyPatch):
    def answer(*_: object, **__: object) -> None:
        raise kind("500 Server Error", **({} if kind is LocalEntryNotFoundError else {"response": Response()}))

    monkeypatch.setattr("customized_grpo.files.pretrained.hf_hub_download", answer)
    with pytest.raises(ModelError) as error:
        find("a/b", "config.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rank 4, for the built-in model."""
    folder = tmp_path_factory.mktemp("adapter")
    policy = FluxKontextPolicy(GENERATOR, height=32, width=32, max_sequence_length=16)
    policy.add_adapter(4, 4.0)
    policy.save_adapter(folder)
    return folder


def altered(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_FILE)
        change(tensors, min(tensors))
        save_file(tensors, folder / ADAPTER_FILE)

    return alter


def of_another_model(tensors: dict[str, torch.Tensor], _: str) -> None:
    tensors.clear()
    tensors["unet.down.lora_A.weight"] = torch.zeros(4, 8)


ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (
        lambda folder: (folder / ADAPTER_FILE).unlink(),
        f"no adapter in mine: {ADAPTER_FILE} is missing; name",
    ),
    "pickle": (
        lambda folder: (folder / ADAPTER_FILE).rename(folder / "pytorch_lora_weights.bin"),
        "pytorch_lora_weights.bin is a pickle, which is never read: it could run any program",
    ),
    "cut": (lambda folder: (folder / ADAPTER_FILE).write_bytes(b"\x01"), "cannot be read (Error while deserializing"),
    "NaN": (
        altered(lambda tensors, key: tensors[key].fill_(torch.nan)),
        "holds NaN or infinities; use an adapter saved",
    ),
    "infinity": (
        altered(lambda tensors, key: tensors[key].fill_(-torch.inf)),
        "holds NaN or infinities; use an adapter saved",
    ),
    "another model": (
        altered(of_another_model),
        "it holds only weights such as unet.down.lora_A.weight, and none for the transformer",
    ),
    "another size": (
        altered(lambda tensors, key: tensors.update({key: torch.zeros(4, 3072)})),
        "proj_out is 64 -> 16, but lora_A is [4, 3072] and lora_B [16, 4]; name the model that it was trained on",
    ),
    "another layer": (
        altered(lambda tensors, key: tensors.update({"transformer.block9.lora_A.weight": tensors.pop(key)})),
        "block9 is not a linear layer of it",
    ),
    "half": (
        altered(lambda tensors, key: tensors.pop(key)),
        "proj_out has lora_B only; lora_A and lora_B go together",
    ),
    "broken settings": (
        lambda folder: (folder / "sampling.json").write_text('{"num_steps": "many"}'),
        "sampling.json is not what training writes (num_steps: Input should be a valid integer",
    ),
    "settings that are no JSON": (
        lambda folder: (folder / "sampling.json").write_text("{"),
        "sampling.json is not what training writes (",
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_that_cannot_be_used(kind: str, adapter: Path, refused: Refusal):
    change, message = ADAPTERS[kind]
    photograph(refused.folder / "dog.png")
    shutil.copytree(adapter, refused.folder / "mine")
    change(refused.folder / "mine")
    said = refused(
        *("generate", "--reference", "dog.png", "--prompt", "a dog", "--adapter", "mine", "--steps", 2),
        *("--model", "critters"),
        *("--output", "out", "--device", "cpu"),
    )
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_commands_that_take_an_adapter_refuse_one_with_nan(command: str, adapter: Path, refused: Refusal):
    shutil.copytree(adapter, refused.folder / "mine")
    altered(lambda tensors, key: tensors[key].fill_(torch.nan))(refused.folder / "mine")
    few = ("--cases", 2, "--device", "cpu") if command == "evaluate" else ("--prompts", 2, "--draws", 2)
    said = refused(command, TINY, "--adapter", "mine", *few, "--output", "out")
    assert "holds NaN or infinities" in said


def test_an_adapter_of_another_rank_does_not_take_the_place_of_a_runs(
    adapter: Path, make_policy: Callable[..., FluxKontextPolicy]
):
    with pytest.raises(ModelError, match=r"proj_out.lora_A.weight is \[4, 64\], expected \[8, 64\]"):
        make_policy(rank=8).load_adapter(adapter)


# --- folders that a command reads ------------------------------------------------------------------------------------


def test_an_evaluation_to_compare_with_is_looked_for_before_pictures_are_made(refused: Refusal):
    said = refused("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out", "--against", "none")
    assert said == "no evaluation in none: rows.jsonl is missing or empty; name a finished one"
    (refused.folder / "other").mkdir()
    (refused.folder / "other" / "rows.jsonl").write_text("[]\n")
    said = refused("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out", "--against", "other")
    assert "not a row of an evaluation" in said


@pytest.mark.parametrize("settings", [None, "{", "{}", "[]", '{"model": "x", "dtype": "float32", "sampling": 3}'])
def test_an_evaluation_whose_settings_nobody_can_tell_is_not_compared_with(settings: str | None, refused: Refusal):
    (refused.folder / "other").mkdir()
    (refused.folder / "other" / "rows.jsonl").write_text(EvaluationRow("a", "a", "p", 0, {"dino": 1.0}).as_line())
    if settings is not None:
        (refused.folder / "other" / "settings.json").write_text(settings)
    said = refused("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out", "--against", "other")
    assert said.startswith("other/settings.json ")
    assert said.endswith("; name another evaluation")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "mine is no run (config.yaml and environment.json), no evaluation"),
        ({"comparison.json": "{"}, "comparison.json is not JSON: "),
        (
            {"comparison.json": "{}"},
            "mine: some file is not as this program writes it (KeyError('arms')); copy it again",
        ),
        ({"comparison.json": b"\xff"}, "comparison.json is not JSON: 'utf-8' codec"),
        ({"config.yaml": "a: 1", "environment.json": "[]"}, "mine: some file is not as this program writes it"),
        ({"settings.json": "{}", "rows.jsonl": ""}, "mine holds no summary.json: the evaluation was stopped"),
        (
            {"config.yaml": "a: 1", "environment.json": "{}", "metrics.jsonl": '{"update": 1}\n{\n'},
            "metrics.jsonl, line 2: not JSON: ",
        ),
    ],
)
def test_a_report_of_a_folder_that_is_not_as_it_was_written(
    files: dict[str, str | bytes], message: str, refused: Refusal
):
    (refused.folder / "mine").mkdir()
    for name, content in files.items():
        (refused.folder / "mine" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert message in refused("report", "mine", "--output", "page.html")


def test_a_report_into_a_folder(refused: Refusal):
    (refused.folder / "mine").mkdir()
    assert refused("report", "mine", "--output", "mine").startswith(
        "--output mine is a folder; name the file to write"
    )
