"""What lies on the disk and cannot be used: pictures, lists, models, adapters, folders of runs."""

import json
import random
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

from commands import TINY, Refusal
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import DataError, Sample, load_image, load_list
from customized_grpo.policies.adapter_file import ADAPTER_FILE
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.pretrained import ModelError, find

GENERATOR = FOLDER / "generator"


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, monkeypatch, capsys)


def photograph(file: Path, side: int = 16) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def entry(name: str, prompt: str = "a dog") -> dict[str, Any]:
    return {"prompt": prompt, "image_paths": [name]}


# --- pictures --------------------------------------------------------------------------------------------------------


def bomb(file: Path) -> None:
    """A PNG of 400 bytes that says it is 30 000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def truncated(file: Path) -> None:
    photograph(file, 64)
    file.write_bytes(file.read_bytes()[:-200])


PICTURES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("none.png", lambda file: None, "no such file or directory; check the path"),
    "folder": ("dog.png", lambda file: file.mkdir(), "is a directory; check the path"),
    "empty": ("dog.png", lambda file: file.write_bytes(b""), "not a picture that Pillow can read; save it as PNG or"),
    "text": ("dog.jpg", lambda file: file.write_text("<html>not found</html>"), "not a picture that Pillow can read"),
    "truncated JPEG": ("dog.jpg", truncated, "cannot be read (image file is truncated"),
    "truncated PNG": ("dog.png", truncated, "cannot be read ("),
    "truncated WebP": ("dog.webp", truncated, "cannot be read (|not a picture that Pillow can read"),
    "bomb": (
        "dog.png",
        bomb,
        "more pixels than Pillow opens (its guard against decompression bombs); make it smaller",
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_cannot_be_read(kind: str, refused: Refusal):
    """In a list for training and as a reference of a picture."""
    name, make, message = PICTURES[kind]
    make(refused.folder / name)
    (refused.folder / "list.json").write_text(json.dumps([entry(name)]))
    said = refused.train("data.source=list.json", "data.train_samples=null")
    assert said.startswith("list.json cannot be used, 1 problem:\n  list.json, entry 1: ")
    assert any(each in said for each in message.split("|")), said
    said = refused("generate", "--reference", name, "--prompt", "a dog", "--output", "out", "--device", "cpu")
    assert said.startswith(f"{name}: ")
    assert any(each in said for each in message.split("|")), said
    assert "\n" not in said


def test_all_references_that_cannot_be_read_are_told_at_once(refused: Refusal):
    said = refused(
        *("generate", "--reference", "a.png", "--reference", "b.png", "--reference", "a.png", "--prompt", "a dog"),
        *("--output", "out", "--device", "cpu"),
    )
    assert [line.split(":")[0] for line in said.split("\n")] == ["a.png", "b.png"]


def test_pictures_of_odd_kinds_are_taken_as_they_are_documented(tmp_path: Path):
    """Of an animation its first frame, sixteen bits scaled to eight; what a file is called says nothing."""
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for name in ("moves.gif", "moves.webp", "moves.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        red.save(tmp_path / name, save_all=True, append_images=[blue], **options)
    Image.fromarray(np.full((8, 8), 257 * 200, dtype=np.uint16)).save(tmp_path / "deep.png")
    red.save(tmp_path / "misnamed.txt", format="PNG")
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "list.json").write_text(json.dumps([entry(name) for name in names]))
    colours = {
        sample.references[0].name: sample.reference_images()[0].getpixel((4, 4))
        for sample in load_list(tmp_path / "list.json")
        if isinstance(sample.references[0], Path)
    }
    assert colours == dict.fromkeys(names, (255, 0, 0)) | {"deep.png": (200, 200, 200)}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_whatever_a_picture_holds_it_loads_or_is_refused(suffix: str, tmp_path: Path):
    """Cut and with changed bytes, at random places."""
    draw = random.Random(suffix)
    whole = photograph(tmp_path / f"dog.{suffix}").read_bytes()
    for _ in range(60):
        content = bytearray(whole[: draw.randint(0, len(whole))])
        for _ in range(draw.randint(0, 3) if content else 0):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file = tmp_path / f"broken.{suffix}"
        file.write_bytes(content)
        try:
            assert load_image(file).mode == "RGB"
        except ValueError as error:
            said = str(error)
            assert said.startswith(f"{file}: ")
            assert "\n" not in said


# --- lists -----------------------------------------------------------------------------------------------------------


def line(**fields: Any) -> str:
    return json.dumps(fields)


LISTS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("list.json", "", ["line 1: not JSON: Expecting value, column 1"]),
    "no entries": ("list.json", "[]", ["holds no samples"]),
    "an object": ("list.json", '{"prompt": "a"}', ['must be an array, not {"prompt": "a"}']),
    "cut": ("list.json", '[{"prompt": "a dog", "image_pa', ["line 1: not JSON: Unterminated string .*"]),
    "nested": ("list.json", "[" * 100_000, ["not JSON: brackets inside brackets, too deep to be meant"]),
    "latin-1": ("list.jsonl", '{"prompt": "Straße"}'.encode("latin-1"), ["line 1: not UTF-8"]),
    "binary": ("list.jsonl", b"\x89PNG\r\n\x1a\n\x00\xff", ["line 1: not UTF-8"]),
    "UTF-16": ("list.json", "[]".encode("utf-16"), ["line 1: not UTF-8"]),
    "another ending": ("list.csv", "prompt,image", ["unknown ending '.csv'"]),
    "same id": (
        "list.jsonl",
        "\n".join([line(id="a", **entry("dog.png")), line(id="a", **entry("dog.png", "another"))]),
        ['list.jsonl, lines 1, 2: id "a" is used more than once; groups are told apart by it'],
    ),
    "empty prompts": (
        "list.jsonl",
        "\n".join(line(**entry("dog.png", prompt)) for prompt in ("", "  ", "\t")),
        [rf"list.jsonl, line {n}: prompt must be a text and not empty, not \".*\"" for n in (1, 2, 3)],
    ),
    "outside": (
        "list.jsonl",
        "\n".join(line(**entry(name)) for name in ("/etc/passwd", "../dog.png", "dog.png/../../x.png")),
        [
            'list.jsonl, line 1: "/etc/passwd" leads out of ., .*; data.root=/ allows absolute paths',
            'list.jsonl, line 2: "../dog.png" leads out of ., .*; give data.root a folder above both',
            'list.jsonl, line 3: "dog.png/../../x.png" leads out of ., .*; give data.root a folder above both',
        ],
    ),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_cannot_be_used(kind: str, refused: Refusal):
    name, content, problems = LISTS[kind]
    photograph(refused.folder / "dog.png")
    (refused.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for command in ("train", "check-rewards"):
        output = ("output=run",) if command == "train" else ("--output", "out")
        said = refused(command, TINY, f"data.source={name}", "data.train_samples=null", *output)
        first, *found, remedy = said.split("\n")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        assert first == f"{name} cannot be used, {count}:"
        assert len(found) == len(problems)
        for wrong, expected in zip(found, problems, strict=True):
            assert re.fullmatch(f"  {expected}", wrong), wrong
        assert remedy


@pytest.mark.parametrize("source", ["none", "none.json", "nowhere/none.jsonl"])
@pytest.mark.parametrize("command", ["train", "evaluate", "probe", "check-rewards"])
def test_a_source_that_is_not_there(command: str, source: str, refused: Refusal):
    output = ("output=run",) if command == "train" else ("--output", "out")
    device = ("--device", "cpu") if command == "evaluate" else ()
    said = refused(command, TINY, f"data.source={source}", "data.train_samples=null", *output, *device)
    assert said.startswith(f"{source} cannot be used, 1 problem:\n  no s")


@pytest.mark.parametrize("name", ["dreambench", "syncd", "subjects200k", "imagefolder", "photographs"])
def test_a_named_layout_without_its_folder(name: str, refused: Refusal):
    word = ("data.class_word=dog",) if name == "photographs" else ()
    said = refused.train(f"data.source={name}", *word)
    assert said == f"data.root: data.source={name} needs the folder of its files; add data.root=path/to/{name}"
    assert "cannot be used" in refused.train(f"data.source={name}", "data.root=nowhere", *word)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_stands_in_a_list_it_loads_or_is_refused(seed: int, tmp_path: Path):
    draw = random.Random(seed)
    photograph(tmp_path / "dog.png")
    odd = [
        None,
        0,
        -1.5,
        True,
        "",
        " ",
        "\0",
        "dog.png",
        "../dog.png",
        "/",
        "a" * 5000,
        [],
        ["dog.png"],
        [None],
        {},
        "é",
    ]
    fields = ["prompt", "image_paths", "image_path", "id", "subject", "other_views", "mask", "class_word", "x"]
    for _ in range(100):
        entries = [entry("dog.png") for _ in range(3)]
        for _ in range(draw.randint(1, 4)):
            draw.choice(entries)[draw.choice(fields)] = draw.choice(odd)
        (tmp_path / "list.json").write_text(json.dumps(entries))
        try:
            assert all(isinstance(sample, Sample) for sample in load_list(tmp_path / "list.json"))
        except DataError as error:
            assert error.problems  # noqa: PT017 - or it loads


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "a prompt is empty; say what to show with --prompt"),
        (("--prompts", "latin.txt"), "latin.txt cannot be used, 1 problem:\n  line 2: not UTF-8\nSave it as UTF-8."),
        (("--prompts", "blank.txt"), "no prompt; say what to show with --prompt, or name a file with --prompts"),
        (("--prompts", "none.txt"), "none.txt cannot be used, 1 problem:\n  no such file\nCheck the path."),
    ],
)
def test_prompts_that_cannot_be_used(arguments: tuple[str, str], message: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    (refused.folder / "latin.txt").write_bytes("a dog\nStraße".encode("latin-1"))
    (refused.folder / "blank.txt").write_text("\n  \n")
    assert refused("generate", "--reference", "dog.png", *arguments, "--output", "out", "--device", "cpu") == message


def test_a_prompt_longer_than_the_text_encoders_read_is_warned_of_once(
    make_policy: Callable[..., FluxKontextPolicy], samples: list[Sample], tmp_path: Path
):
    """By T5 as by CLIP, also where the answer comes from a cache on the disk, and never for one that fits."""
    from dataclasses import replace

    long = replace(samples[0], prompt=f"{samples[0].prompt}, in a red hat" + ", in the snow" * 40)
    for _ in range(2):  # the second from the cache
        policy = make_policy(condition_cache=tmp_path / "cache")
        with pytest.warns(
            UserWarning, match=r"longer than the model reads: \d+ tokens, of which T5 .* reads 16"
        ) as said:
            policy.encode([samples[0], long, long])
            policy.encode([long, samples[1]])
        (warning,) = [each for each in said if "longer than the model reads" in str(each.message)]
        assert repr(long.prompt) in str(warning.message)
        assert "of which CLIP" in str(warning.message)


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
        f"{part} lacks a weight": (without_a_weight(part), f"model is not whole: {part} has no weight ")
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2")
    },
    "a cut transformer": (cut("transformer"), "model, transformer cannot be loaded: "),
    "a cut text encoder": (cut("text_encoder"), "model, text_encoder cannot be loaded: "),
    "a pickle": (as_a_pickle("transformer"), "has its weights in pytorch_model.bin, a pickle, which could run any"),
    "no weights": (lambda folder: weights(folder, "vae").unlink(), "model, vae cannot be loaded: Error no file named"),
    "no part": (
        lambda folder: shutil.rmtree(folder / "vae"),
        "model is not whole: vae missing; fetch the model again",
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
        "model is not the model that is needed here: ",
    ),
    "a broken index": (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json is not JSON: "),
    "another class": (another_class, "model is a StableDiffusionPipeline, where a FluxKontextPipeline is needed"),
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
    assert refused(command, *arguments, "--output", "out").startswith("model is not whole: vae has no weight ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("model.path=black-forest-labs/FLUX.1-Kontext-dve",),
            "black-forest-labs/FLUX.1-Kontext-dve is no folder here",
        ),
        (("model.path=a/b/c",), "'a/b/c' is no folder, and no hub id: those are written owner/name"),
        (("model.path=",), "model.path: input should be a valid string, not None"),
        (("model.path=~/models/x",), "no model in ~/models/x; name a folder in the library's format, or a hub id"),
        (("rewards.identity.model=nobody/none",), "nobody/none is no folder here, and the hub cannot be reached"),
        (("rewards.prompt.model=nobody/none",), "nobody/none is no folder here, and the hub cannot be reached"),
        (("rewards.prompt.name=pickscore",), "yuvalkirstain/PickScore_v1 is no folder here, and the hub cannot be"),
        (("rewards.prompt.name=hpsv3",), "Qwen/Qwen2-VL-7B-Instruct is no folder here, and the hub cannot be reached"),
        ((f"rewards.identity.model={GENERATOR}",), "is not the model that is needed here: it has no config.json"),
        (
            (f"rewards.prompt.model={FOLDER / 'dino'}",),
            "dino is a 'dinov2' checkpoint; this reward takes one of type clip",
        ),
        ((f"rewards.identity.model={FOLDER / 'clip'}",), "clip is a 'clip' checkpoint; take one of type dinov2"),
        (("model.height=30",), "pictures of 32x30 pixels; this model needs multiples of 4"),
        (("adapter.targets=[nope]",), "nope"),
        (("rewards.prompt.name=no_such_module:f",), "there is no module 'no_such_module'"),
        (("rewards.prompt.name=none.py:f",), "none.py': no such file"),
        (("rewards.prompt.name=os:nothing",), "os has no function 'nothing'"),
        (("model.condition_cache=dog.png",), "condition cache dog.png: not a folder"),
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
            "a/b is no folder here, and the hub has no such model, or a private one: check the name,",
        ),
        (
            LocalEntryNotFoundError,
            "the hub cannot be reached for it: check the name, the network, and that HF_HUB_OFFLINE",
        ),
        (HfHubHTTPError, "a/b: the hub answers 500 Server Error; try again later"),
    ],
)
def test_what_the_hub_says_in_one_line(kind: Any, message: str, monkeypatch: pytest.MonkeyPatch):
    def answer(*_: object, **__: object) -> None:
        raise kind("500 Server Error", **({} if kind is LocalEntryNotFoundError else {"response": Response()}))

    monkeypatch.setattr("customized_grpo.pretrained.hf_hub_download", answer)
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
        "holds NaN or infinities; take an adapter of",
    ),
    "infinity": (
        altered(lambda tensors, key: tensors[key].fill_(-torch.inf)),
        "holds NaN or infinities; take an adapter",
    ),
    "another model": (altered(of_another_model), "it changes none of its layers, but unet.down.lora_A.weight"),
    "another size": (
        altered(lambda tensors, key: tensors.update({key: torch.zeros(4, 3072)})),
        "proj_out is 64 -> 16 here; lora_A is [4, 3072], lora_B [16, 4]; name the model that it was trained on",
    ),
    "another layer": (
        altered(lambda tensors, key: tensors.update({"transformer.block9.lora_A.weight": tensors.pop(key)})),
        "it changes block9, which is no layer here",
    ),
    "half": (altered(lambda tensors, key: tensors.pop(key)), "of proj_out it holds only lora_B"),
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
    with pytest.raises(ModelError, match=r"proj_out.lora_A.weight is \[4, 64\], and \[8, 64\] here"):
        make_policy(rank=8).load_adapter(adapter)


# --- folders that a command reads ------------------------------------------------------------------------------------


def test_an_evaluation_to_compare_with_is_looked_for_before_pictures_are_made(refused: Refusal):
    said = refused("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out", "--against", "none")
    assert said == "no evaluation in none: rows.jsonl is missing or empty; name a finished one"
    (refused.folder / "other").mkdir()
    (refused.folder / "other" / "rows.jsonl").write_text("[]\n")
    said = refused("evaluate", TINY, "--cases", 2, "--device", "cpu", "--output", "out", "--against", "other")
    assert "holds a line that no evaluation wrote" in said


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
            {"config.yaml": "a: 1", "environment.json": "{}", "metrics.jsonl": "{}\n{\n"},
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
    assert refused("report", "mine", "--output", "mine").startswith("--output mine is a folder; name the file that is")
