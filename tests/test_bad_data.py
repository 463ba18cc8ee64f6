"""Pictures, lists and prompts that cannot be used: every problem at once, exit code 2, nothing written."""

import errno
import json
import os
import random
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data import DataError, Sample, load_data, load_image, load_list
from customized_grpo.data.findings import show
from customized_grpo.data.images import PictureError
from customized_grpo.data.sources import NAMES
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.paths import display
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from program import TINY, Refusal


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
    """A PNG of 400 bytes whose header claims 30 000 pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def truncated(file: Path) -> None:
    photograph(file, 64)
    file.write_bytes(file.read_bytes()[:-200])


PICTURES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("none.png", lambda _: None, "no such file or directory; check the path"),
    "folder": ("dog.png", lambda file: file.mkdir(), "is a directory; check the path"),
    "empty": ("dog.png", lambda file: file.write_bytes(b""), "not a picture that Pillow can read; save it as PNG or"),
    "text": ("dog.jpg", lambda file: file.write_text("<html>not found</html>"), "not a picture that Pillow can read"),
    "truncated JPEG": ("dog.jpg", truncated, "cannot be read (image file is truncated"),
    "truncated PNG": ("dog.png", truncated, "cannot be read ("),
    "truncated WebP": ("dog.webp", truncated, "cannot be read (|not a picture that Pillow can read"),
    "name of 300 letters": ("x" * 300 + ".png", lambda _: None, "file name too long; check the path"),
    "line break": ("dog\n.png", lambda _: None, "no such file or directory; check the path"),
    "bomb": (
        "dog.png",
        bomb,
        "too many pixels for Pillow (its guard against decompression bombs); make it smaller",
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_cannot_be_read(kind: str, refused: Refusal):
    """In a list for training and as a reference of a picture."""
    name, make, message = PICTURES[kind]
    make(refused.folder / name)
    (refused.folder / "list.json").write_text(json.dumps([entry(name)]))
    in_list = refused.train("data.source=list.json", "data.train_samples=null")
    assert in_list.startswith("list.json cannot be used, 1 problem:\n  list.json, entry 1: ")
    assert len(in_list.split("\n")) == 3
    as_reference = refused("generate", "--reference", name, "--prompt", "a dog", "--output", "out", "--device", "cpu")
    assert as_reference.startswith(f"{display(name)}: ")
    assert "\n" not in as_reference
    for answer in (in_list, as_reference):
        assert any(part in answer for part in message.split("|")), answer


def test_all_unreadable_references_are_reported_at_once(refused: Refusal):
    message = refused(
        *("generate", "--reference", "a.png", "--reference", "b.png", "--reference", "a.png", "--prompt", "a dog"),
        *("--output", "out", "--device", "cpu"),
    )
    assert [line.split(":")[0] for line in message.split("\n")] == ["a.png", "b.png"]


def test_unusual_pictures_are_read_as_documented(tmp_path: Path):
    """The first frame of an animation, sixteen bits scaled to eight, any file name."""
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for name in ("moves.gif", "moves.webp", "moves.png"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], lossless=True)  # lossless is an option of WebP
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
def test_a_damaged_picture_loads_or_is_refused(suffix: str, tmp_path: Path):
    """Cut at a random place, with random bytes changed."""
    draw = random.Random(suffix)
    intact = photograph(tmp_path / f"dog.{suffix}").read_bytes()
    for _ in range(60):
        content = bytearray(intact[: draw.randint(0, len(intact))])
        for _ in range(draw.randint(0, 3) if content else 0):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file = tmp_path / f"broken.{suffix}"
        file.write_bytes(content)
        try:
            assert load_image(file).mode == "RGB"
        except PictureError as error:
            message = str(error)
            assert message.startswith(f"{file}: ")
            assert "\n" not in message


NAME = os.fsdecode(b"stra\xe1e")  # "straße" in the code page of DOS


def test_names_that_are_not_utf8(refused: Refusal):
    """Of a photograph, a reference, the folder of photographs, and the folder that the program is started in."""
    photograph(refused.folder / "dog" / f"{NAME}.png")
    photograph(refused.folder / NAME / "dog.png")
    of_photographs = ("data.source=photographs", "data.class_word=dog")
    shown = "stra\\udce1e"
    for command in (("train", TINY, "output=run"), ("evaluate", TINY, "--output", "out", "--device", "cpu")):
        message = refused(*command, *of_photographs, "data.root=dog")
        assert f"  'dog/{shown}.png': this name is not UTF-8; give the file or folder another one\n" in message
    generate = ("--prompt", "a dog", "--output", "out", "--device", "cpu")
    assert refused.line("generate", "--reference", f"dog/{NAME}.png", *generate).startswith(f"'dog/{shown}.png': this")
    with pytest.raises(
        UsageError, match=r"^data\.source: the name 'stra\\udce1e' is not UTF-8; give the file or folder"
    ):
        load_data(NAME, root=None, class_word="dog", held_out_share=0, seed=0)
    refused.patch.chdir(refused.folder / NAME)
    assert "\n  its name is not UTF-8\n" in refused.train("data.source=.", "data.class_word=dog")


@pytest.mark.parametrize(("word", "flaw"), [("a \ud83d", "a lone surrogate (\\ud83d)"), ("a\0b", "a NUL character")])
def test_class_words_that_no_tokenizer_takes(word: str, flaw: str, refused: Refusal):
    photograph(refused.folder / "dog" / "0.png")
    message = refused.train("data.source=dog", f"data.class_word={json.dumps(word)}")
    assert re.fullmatch(rf'data\.class_word: "a\S* ?\S*" has {re.escape(flaw)}.*; remove it', message), message


# --- lists -----------------------------------------------------------------------------------------------------------


def line(**fields: Any) -> str:
    return json.dumps(fields)


LISTS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("list.json", "", ["line 1: not JSON: Expecting value, column 1"]),
    "no entries": ("list.json", "[]", ["holds no samples"]),
    "an object": ("list.json", '{"prompt": "a"}', ['must be an array, not {"prompt": "a"}']),
    "cut": ("list.json", '[{"prompt": "a dog", "image_pa', ["line 1: not JSON: Unterminated string .*"]),
    "nested": ("list.json", "[" * 100_000, ["brackets are nested too deeply"]),
    "nested entry": ("list.jsonl", "[" * 500 + "]" * 500, ["list.jsonl, line 1: brackets are nested too deeply"]),
    "digits": ("list.json", f"[{'9' * 5000}]", ["a number has too many digits"]),
    "half a character": (
        "list.jsonl",
        line(**entry("dog.png", "a \ud83d dog")),
        [r'list.jsonl, line 1: "a \\ud83d dog" has a lone surrogate \(\\ud83d\), half a character; remove it'],
    ),
    "NUL": (
        "list.jsonl",
        line(**entry("dog.png", "a \0 dog")),
        [r'list.jsonl, line 1: prompt "a \\u0000 dog" has a NUL character \(\\u0000\); remove it'],
    ),
    "latin-1": ("list.jsonl", '{"prompt": "Straße"}'.encode("latin-1"), ["line 1: not UTF-8"]),
    "binary": ("list.jsonl", b"\x89PNG\r\n\x1a\n\x00\xff", ["line 1: not UTF-8"]),
    "UTF-16": ("list.json", "[]".encode("utf-16"), ["line 1: not UTF-8"]),
    "another ending": ("list.csv", "prompt,image", ["unknown ending '.csv'"]),
    "same id": (
        "list.jsonl",
        "\n".join([line(id="a", **entry("dog.png")), line(id="a", **entry("dog.png", "another"))]),
        ['list.jsonl, lines 1, 2: id "a" is used more than once; give each sample its own'],
    ),
    "empty prompts": (
        "list.jsonl",
        "\n".join(line(**entry("dog.png", prompt)) for prompt in ("", "  ", "\t")),
        [rf"list.jsonl, line {n}: prompt must be a non-empty text, not \".*\"" for n in (1, 2, 3)],
    ),
    "outside": (
        "list.jsonl",
        "\n".join(line(**entry(name)) for name in ("/etc/passwd", "../dog.png", "dog.png/../../x.png")),
        [
            'list.jsonl, line 1: "/etc/passwd" leads out of ., .*; data.root=/ allows absolute paths',
            'list.jsonl, line 2: "../dog.png" leads out of ., .*; set data.root to a folder above both',
            'list.jsonl, line 3: "dog.png/../../x.png" leads out of ., .*; set data.root to a folder above both',
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
        message = refused(command, TINY, f"data.source={name}", "data.train_samples=null", *output)
        first, *lines, remedy = message.split("\n")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        assert first == f"{name} cannot be used, {count}:"
        for problem, expected in zip(lines, problems, strict=True):
            assert re.fullmatch(f"  {expected}", problem), problem
        assert remedy


@pytest.mark.parametrize("source", ["none", "none.json", "nowhere/none.jsonl"])
@pytest.mark.parametrize("command", ["train", "evaluate", "probe", "check-rewards"])
def test_a_missing_source(command: str, source: str, refused: Refusal):
    output = ("output=run",) if command == "train" else ("--output", "out")
    device = ("--device", "cpu") if command == "evaluate" else ()
    message = refused(command, TINY, f"data.source={source}", "data.train_samples=null", *output, *device)
    assert message.startswith(f"{source} cannot be used, 1 problem:\n  no")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x" * 300, "not the name of a source, and no such file or folder"),
        ("x" * 300 + ".json", "file name too long"),
        ("dog.png/list.json", "not a directory"),
    ],
)
def test_an_impossible_source(source: str, problem: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    message = refused.train(f"data.source={source}", "data.train_samples=null")
    assert f" cannot be used, 1 problem:\n  {problem}\n" in message


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BUILT_IN])
@pytest.mark.parametrize(
    ("root", "problem"), [("x" * 300, "file name too long"), ("dog.png", "not a directory"), ("none", "no such file")]
)
def test_an_impossible_root(name: str, root: str, problem: str, refused: Refusal):
    if name == "subjects200k":
        pytest.importorskip("pyarrow")
    photograph(refused.folder / "dog.png")
    word = ("data.class_word=dog",) if name == "photographs" else ()
    message = refused.train(f"data.source={name}", f"data.root={root}", *word)
    assert f" cannot be used, 1 problem:\n  {problem}" in message


@pytest.mark.parametrize("source", ["list.json", "folder"])
def test_a_source_without_permission(source: str, refused: Refusal, monkeypatch: pytest.MonkeyPatch):
    """Raised in place of the system, which allows the root user everything."""

    def forbid(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (refused.folder / "list.json").write_text("[]")
    (refused.folder / "folder").mkdir()
    monkeypatch.setattr(Path, "read_bytes" if source == "list.json" else "iterdir", forbid)
    with pytest.raises(DataError, match=r"^\S+ cannot be used, 1 problem:\n  permission denied\nCheck the path\.$"):
        load_data(source, root=None, class_word="dog", held_out_share=0, seed=0)


@pytest.mark.parametrize("name", ["dreambench", "syncd", "subjects200k", "imagefolder", "photographs"])
def test_a_named_layout_without_its_folder(name: str, refused: Refusal):
    word = ("data.class_word=dog",) if name == "photographs" else ()
    message = refused.train(f"data.source={name}", *word)
    assert message == f"data.root: data.source={name} needs the folder of its files; add data.root=path/to/{name}"
    assert "cannot be used" in refused.train(f"data.source={name}", "data.root=nowhere", *word)


@pytest.mark.parametrize("seed", range(3))
def test_a_list_with_random_values_loads_or_is_refused(seed: int, tmp_path: Path):
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

JSON_PROMPT = '{"prompt": "a dog"}'
PLAIN = "write one prompt per line, as plain text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", ""), "a prompt is empty; say what to show with --prompt"),
        (
            ("--prompt", "a d\udce9g"),
            'the prompt "a d\\udce9g" has a lone surrogate (\\udce9), half a character or a byte '
            "that is not UTF-8; remove it",
        ),
        (("--prompts", "nul.txt"), '--prompts nul.txt: line 2: "a\\u0000b" has a NUL character (\\u0000); remove it'),
        (("--prompts", "latin.txt"), "--prompts latin.txt: line 2: not UTF-8; name a text file in UTF-8"),
        (("--prompts", "blank.txt"), "no prompt; say what to show with --prompt, or name a file with --prompts"),
        (("--prompts", "."), "--prompts .: is a directory; name a text file in UTF-8"),
        (("--prompts", "list.jsonl"), f"--prompts list.jsonl: {show(JSON_PROMPT)} is JSON; {PLAIN}"),
        (("--prompts", "kohya.txt"), f'--prompts kohya.txt: "--w 512" is a setting of another program; {PLAIN}'),
        (("--prompts", "comment.txt"), f'--prompts comment.txt: "# mine" is a comment of another program; {PLAIN}'),
        (("--prompts", "none.txt"), "--prompts none.txt: no such file or directory; name a text file in UTF-8"),
    ],
)
def test_prompts_that_cannot_be_used(arguments: tuple[str, str], message: str, refused: Refusal):
    photograph(refused.folder / "dog.png")
    (refused.folder / "latin.txt").write_bytes("a dog\nStraße".encode("latin-1"))
    (refused.folder / "blank.txt").write_text("\n  \n")
    (refused.folder / "nul.txt").write_text("a dog\na\0b\n")
    (refused.folder / "list.jsonl").write_text(f"{JSON_PROMPT}\n")
    (refused.folder / "kohya.txt").write_text("a dog --w 512 --h 512\n")
    (refused.folder / "comment.txt").write_text("# mine\na dog\n")
    assert refused("generate", "--reference", "dog.png", *arguments, "--output", "out", "--device", "cpu") == message


def test_a_prompt_longer_than_the_text_encoders_read_is_warned_of_once(
    make_policy: Callable[..., FluxKontextPolicy], samples: list[Sample], tmp_path: Path
):
    """By T5 and by CLIP, also if the encoding comes from the cache on disk, and never for one that fits."""
    long = replace(samples[0], prompt=f"{samples[0].prompt}, in a red hat" + ", in the snow" * 40)
    for _ in range(2):  # the second from the cache
        policy = make_policy(condition_cache=tmp_path / "cache")
        with warnings.catch_warnings(record=True, action="always") as caught:
            policy.encode([samples[0], long, long])
            policy.encode([long, samples[1]])
        (message,) = [str(warning.message) for warning in caught if "longer than" in str(warning.message)]
        assert re.match(r"a prompt is longer than the model reads: \d+ tokens, of which T5 .* reads 16; ", message)
        assert "of which CLIP" in message
        assert repr(long.prompt) in message
