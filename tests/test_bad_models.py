"""Models, adapters and folders of runs that cannot be used: one line, exit code 2, nothing written."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

from customized_grpo.config import dump_config, load_config
from customized_grpo.critters.weights import FOLDER
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError, find
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model
from program import TINY, Refusal

GENERATOR = FOLDER / "generator"


def photograph(file: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(file)


# --- models ----------------------------------------------------------------------------------------------------------


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def without_a_weight(folder: Path, part: str) -> None:
    tensors = load_file(weights(folder, part))
    del tensors[sorted(tensors)[3]]
    save_file(tensors, weights(folder, part), {"format": "pt"})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def another_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the transformer lacks a weight": (
        lambda model: without_a_weight(model, "transformer"),
        "model is incomplete: transformer has no weight ",
    ),
    "the text encoder lacks a weight": (
        lambda model: without_a_weight(model, "text_encoder_2"),
        "model is incomplete: text_encoder_2 has no weight ",
    ),
    "a cut transformer": (lambda model: cut(weights(model, "transformer")), "model, transformer cannot be loaded: "),
    "a cut text encoder": (lambda model: cut(weights(model, "text_encoder")), "model, text_encoder cannot be loaded:"),
    "no weights": (lambda model: weights(model, "vae").unlink(), "model, vae cannot be loaded: Error no file named"),
    "no part": (lambda model: shutil.rmtree(model / "vae"), "model is incomplete: vae missing; download the model"),
    "no tokens": (lambda model: (model / "tokenizer_2/tokenizer.json").unlink(), "tokenizer_2/tokenizer.json missing"),
    "no config": (lambda model: (model / "text_encoder/config.json").unlink(), "text_encoder/config.json missing"),
    "a broken config": (
        lambda model: (model / "vae/config.json").write_text("{"),
        "model, vae cannot be loaded: It looks like the config file",
    ),
    "no index": (lambda model: (model / "model_index.json").unlink(), "model is not the kind of model needed here: "),
    "a broken index": (lambda model: (model / "model_index.json").write_text("{"), "model_index.json is not JSON: "),
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
    assert message in refused.line("train", TINY, "output=run", "model.path=model")


GENERATE = ("generate", "--reference", "dog.png", "--prompt", "a dog", "--device", "cpu")
EVALUATE = ("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out")
PROBE = ("probe", TINY, "--prompts", 2, "--draws", 2, "--output", "out")


@pytest.mark.parametrize(
    "arguments",
    [(*EVALUATE, "model.path=model"), (*PROBE, "model.path=model"), (*GENERATE, "--model", "model", "--size", 32)],
    ids=["evaluate", "probe", "generate"],
)
def test_every_command_refuses_an_incomplete_generator(arguments: Sequence[object], refused: Refusal):
    photograph(refused.folder / "dog.png")
    shutil.copytree(GENERATOR, refused.folder / "model")
    without_a_weight(refused.folder / "model", "vae")
    assert refused(*arguments).startswith("model is incomplete: vae has no weight ")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "model.path=black-forest-labs/FLUX.1-Kontext-dve",
            "black-forest-labs/FLUX.1-Kontext-dve is not a folder here",
        ),
        ("model.path=a/b/c", "'a/b/c' is neither a folder nor a hub id, which is written owner/name"),
        (
            "model.path=~/models/x",
            f"no model in {Path.home()}/models/x; name a folder in the library's format, or a hub id",
        ),
        ("model.height=30", "pictures of 32x30 pixels; this model needs multiples of 4"),
        ("model.condition_cache=dog.png", "model.condition_cache dog.png: "),
        (
            "adapter.targets=[to_q, nope]",
            "adapter.targets: 'nope' matches no linear layer of this model; name",
        ),
        ("rewards.identity.model=nobody/none", "nobody/none is not a folder here, and the hub cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_used(setting: str, message: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    assert message in refused.line("train", TINY, "output=run", setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prompt.model=nobody/none", "nobody/none is not a folder here, and the hub cannot be reached"),
        ("prompt.name=pickscore", "yuvalkirstain/PickScore_v1 is not a folder here, and the hub cannot be reached"),
        ("prompt.name=hpsv3", "Qwen/Qwen2-VL-7B-Instruct is not a folder here, and the hub cannot be reached"),
        (f"identity.model={GENERATOR}", "is not the kind of model needed here: it has no config.json"),
        (f"prompt.model={FOLDER / 'dino'}", "dino is a 'dinov2' checkpoint; this reward needs one of type clip"),
        (f"identity.model={FOLDER / 'clip'}", "clip is a 'clip' checkpoint; use one of type dinov2"),
        ("prompt.name=no_such_module:f", "there is no module 'no_such_module'"),
        ("prompt.name=none.py:f", "reward 'none.py:f': no file none.py"),
        ("prompt.name=os:nothing", "os has no function 'nothing'"),
    ],
)
def test_a_reward_that_cannot_be_used(setting: str, message: str, refused: Refusal):
    """By the command that loads rewards and no generator."""
    assert message in refused.line("check-rewards", TINY, f"rewards.{setting}", "--cases", 2)


class Response:
    status_code, headers, request = 401, dict[str, str](), None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("", response=Response()),  # pyright: ignore[reportArgumentType]
            "a/b is gated: accept its terms at https://huggingface.co/a/b, then log in with `hf auth login`",
        ),
        (
            RepositoryNotFoundError("", response=Response()),  # pyright: ignore[reportArgumentType]
            "a/b is not a folder here, and the hub has no such public model: check the name,",
        ),
        (
            LocalEntryNotFoundError(""),
            "the hub cannot be reached: check the name, the network, and that HF_HUB_OFFLINE",
        ),
        (
            HfHubHTTPError("500 Server Error", response=Response()),  # pyright: ignore[reportArgumentType]
            "a/b: the hub answers 500 Server Error; try again later",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_hub_is_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch):
    def answer(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("customized_grpo.files.pretrained.hf_hub_download", answer)
    with pytest.raises(ModelError) as caught:
        find("a/b", "config.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rank 4, for the built-in model."""
    folder = tmp_path_factory.mktemp("adapter")
    policy = FluxKontextPolicy.load(GENERATOR, Model(), "cpu")
    policy.add_adapter(4, 4.0)
    policy.save_adapter(folder)
    return folder


def altered(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    """Reads an adapter, lets `change` alter its tensors (the second argument is the first name), and saves it."""

    def alter(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_FILE)
        change(tensors, min(tensors))
        save_file(tensors, folder / ADAPTER_FILE)

    return alter


def of_another_model(tensors: dict[str, torch.Tensor], _: str) -> None:
    tensors.clear()
    tensors["unet.down.lora_A.weight"] = torch.zeros(4, 8)


with_nan = altered(lambda tensors, key: tensors[key].fill_(torch.nan))

ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (
        lambda folder: (folder / ADAPTER_FILE).unlink(),
        f"no adapter in mine: {ADAPTER_FILE} is missing; name",
    ),
    "cut": (lambda folder: (folder / ADAPTER_FILE).write_bytes(b"\x01"), "cannot be read (Error while deserializing"),
    "NaN": (with_nan, "holds NaN or infinities; use an adapter saved before"),
    "infinity": (
        altered(lambda tensors, key: tensors[key].fill_(-torch.inf)),
        "holds NaN or infinities; use an adapter",
    ),
    "another model": (
        altered(of_another_model),
        "it holds only weights such as unet.down",
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
        "proj_out has lora_B only; lora_A and",
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
    assert message in refused.line(*GENERATE, "--adapter", "mine", "--model", "critters", "--steps", 2)


@pytest.mark.parametrize("arguments", [EVALUATE, PROBE], ids=["evaluate", "probe"])
def test_every_command_refuses_an_adapter_with_nan(arguments: Sequence[object], adapter: Path, refused: Refusal):
    shutil.copytree(adapter, refused.folder / "mine")
    with_nan(refused.folder / "mine")
    assert "holds NaN or infinities" in refused(*arguments, "--adapter", "mine")


def test_an_adapter_of_another_rank_does_not_replace_the_one_of_a_run(
    adapter: Path, make_policy: Callable[..., FluxKontextPolicy]
):
    with pytest.raises(ModelError, match=r"proj_out.lora_A.weight is \[4, 64\], expected \[8, 64\]"):
        make_policy(rank=8).load_adapter(adapter)


# --- folders that a command reads ------------------------------------------------------------------------------------


def test_the_evaluation_to_compare_with_is_checked_before_any_picture_is_made(refused: Refusal):
    message = refused(*EVALUATE, "--against", "none")
    assert message == "no evaluation in none: rows.jsonl is missing or empty; name a finished one"
    (refused.folder / "other").mkdir()
    (refused.folder / "other" / "rows.jsonl").write_text("[]\n")
    assert "rows.jsonl, line 1: not a row of an evaluation (" in refused(*EVALUATE, "--against", "other")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "cannot be read ("),
        ("{}", "does not tell how the images were generated"),
        ("[]", "was not written by an evaluation: it holds a list"),
        ('{"model": "x", "dtype": "float32", "sampling": 3}', "does not tell how the images were generated"),
    ],
)
def test_an_evaluation_without_usable_settings_is_not_compared_with(
    settings: str | None, problem: str, refused: Refusal
):
    (refused.folder / "other").mkdir()
    (refused.folder / "other" / "rows.jsonl").write_text(EvaluationRow("a", "a", "p", 0, {"dino": 1.0}).as_line())
    if settings is not None:
        (refused.folder / "other" / "settings.json").write_text(settings)
    message = refused(*EVALUATE, "--against", "other")
    assert message.startswith(f"other/settings.json {problem}")
    assert message.endswith("; name another evaluation")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "mine is not a run (config.yaml and environment.json), evaluation"),
        ({"comparison.json": "{"}, "comparison.json is not JSON: "),
        (
            {"comparison.json": "{}"},
            "mine/comparison.json: arms: field required; copy the folder again, or make it again with this version",
        ),
        (
            {"comparison.json": b"\xff"},
            "comparison.json is not JSON: expected value at line 1",
        ),
        (
            {"config.yaml": "a: 1", "environment.json": "[]"},
            "mine/config.yaml: model: field required;",
        ),
        ({"settings.json": "{}", "rows.jsonl": ""}, "mine has no summary.json: the evaluation was stopped"),
        (
            {"config.yaml": dump_config(load_config(TINY)), "environment.json": "{}", "metrics.jsonl": "{\n"},
            "metrics.jsonl, line 1: not JSON: ",
        ),
    ],
)
def test_a_report_of_a_damaged_folder(files: dict[str, str | bytes], message: str, refused: Refusal):
    (refused.folder / "mine").mkdir()
    for name, content in files.items():
        (refused.folder / "mine" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert message in refused("report", "mine", "--output", "page.html")


def test_a_report_into_a_folder(refused: Refusal):
    (refused.folder / "mine").mkdir()
    assert refused("report", "mine", "--output", "mine").startswith(
        "--output mine is a folder; name the file to write"
    )
