"""The shipped files are in the formats of their libraries, which load them without any code of this package."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Model

from customized_grpo.critters import world
from customized_grpo.critters.build.run import Build, Recipe
from customized_grpo.critters.weights import FOLDER, FOLDERS, identity_threshold, resolve
from customized_grpo.errors import UsageError


def use_every_part(weights: Path, folder: Path, look: str = "wearing a red hat") -> dict[str, Any]:
    """Generate folder/made.png and encode folder/reference.png, by plain diffusers and transformers."""
    prompt = f"a critter on the beach, at the left, {look}"
    reference = Image.open(folder / "reference.png")
    pipe: Any = FluxKontextPipeline.from_pretrained(weights / "generator")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        image=reference,
        prompt=prompt,
        height=32,
        width=32,
        max_area=32 * 32,
        _auto_resize=False,
        num_inference_steps=4,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(folder / "made.png")
    dino: Any = Dinov2Model.from_pretrained(weights / "dino")
    pixels = AutoImageProcessor.from_pretrained(weights / "dino")(images=reference, return_tensors="pt")[
        "pixel_values"
    ]
    clip: Any = CLIPModel.from_pretrained(weights / "clip")
    clip_processor = AutoImageProcessor.from_pretrained(weights / "clip")
    clip_pixels = clip_processor(images=reference, return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(weights / "clip")([prompt], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        feature = dino(pixel_values=pixels).last_hidden_state[0, 0]
        picture = clip.get_image_features(pixel_values=clip_pixels).pooler_output[0]
        text = clip.get_text_features(**tokens).pooler_output[0]
    return {
        "classes": [type(part).__name__ for part in (pipe, dino, clip)],
        "pixels": pixels.flatten().tolist(),
        "clip_pixels": clip_pixels.flatten().tolist(),
        "feature": feature.tolist(),
        "cosine": torch.cosine_similarity(picture, text, dim=0).item(),
    }


WITHOUT_THIS_PACKAGE = f"""
import json, sys
from pathlib import Path
from typing import Any
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Model

{inspect.getsource(use_every_part)}
print(json.dumps(use_every_part(Path(sys.argv[1]), Path(sys.argv[2]))))
assert "customized_grpo" not in sys.modules
"""


@pytest.fixture(scope="module", params=list(FOLDERS))
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the libraries get from the shipped files of a world, and the folder of the pictures."""
    folder = tmp_path_factory.mktemp("used")
    world.picture(7, world.Situation("snow", "centre", "no")).save(folder / "reference.png")
    look = "wearing a red hat" if request.param == "critters" else "tinted red"
    return use_every_part(FOLDERS[request.param], folder, look), folder


@pytest.mark.slow
@pytest.mark.parametrize("used", ["critters"], indirect=True)
def test_a_process_without_this_package_gets_the_same(used: tuple[dict[str, Any], Path], tmp_path: Path):
    report, folder = used
    (tmp_path / "reference.png").write_bytes((folder / "reference.png").read_bytes())
    command = [sys.executable, "-c", WITHOUT_THIS_PACKAGE, str(FOLDER), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    alone = json.loads(run.stdout.splitlines()[-1])
    assert alone["classes"] == report["classes"]
    for name in ("pixels", "clip_pixels", "feature", "cosine"):
        np.testing.assert_allclose(alone[name], report[name], atol=1e-5)
    made, expected = (np.asarray(Image.open(place / "made.png")).astype(int) for place in (tmp_path, folder))
    np.testing.assert_allclose(made, expected, atol=1)


def test_plain_diffusers_and_transformers_load_every_part(used: tuple[dict[str, Any], Path]):
    assert used[0]["classes"] == ["FluxKontextPipeline", "Dinov2Model", "CLIPModel"]


def test_plain_diffusers_makes_a_picture(used: tuple[dict[str, Any], Path]):
    picture = Image.open(used[1] / "made.png")
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert np.asarray(picture).std() > 10  # no flat field


def test_the_image_processors_keep_every_pixel(used: tuple[dict[str, Any], Path]):
    """[-1, 1], neither resized nor cropped."""
    report, folder = used
    expected = np.asarray(Image.open(folder / "reference.png")).transpose(2, 0, 1) / 127.5 - 1
    for name in ("pixels", "clip_pixels"):
        np.testing.assert_allclose(np.reshape(report[name], (3, 32, 32)), expected, atol=1e-6)


def test_the_encoders_give_features(used: tuple[dict[str, Any], Path]):
    report, _ = used
    assert len(report["feature"]) == 64
    assert np.std(report["feature"]) > 0.1
    assert -1 <= report["cosine"] <= 1


def test_all_weights_are_safetensors_and_small():
    sizes = [file.stat().st_size for file in FOLDER.rglob("*.safetensors")]
    assert len(sizes) == 2 * 6  # of each world transformer, VAE, two text encoders, DINO, CLIP
    assert sum(sizes) <= 12e6
    shipped = {file.suffix for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert shipped == {".safetensors", ".json", ".py"}  # no pickles


@pytest.mark.parametrize("name", FOLDERS)
def test_the_record_of_a_world_says_that_all_gates_were_reached(name: str):
    record = json.loads((FOLDERS[name] / "provenance.json").read_text())
    assert record["recipe"].get("world", "critters") == name
    build = Build(Recipe(world=name), Path("nowhere"))
    assert ("dyed_other_accepted" in build.limits["oracle"]) == (name == "critters-dye")
    for part, limits in build.limits.items():
        for figure, (low, high) in limits.items():
            assert low <= record["gates"][part][figure] <= high, (part, figure)
    assert identity_threshold(name) == record["gates"]["oracle"]["identity_threshold"]


@pytest.mark.parametrize("part", ["generator", "dino", "clip"])
@pytest.mark.parametrize("name", FOLDERS)
def test_the_built_in_name_gives_the_shipped_folder(name: str, part: Any):
    assert resolve(name, part) == FOLDERS[name] / part
    assert (FOLDERS[name] / part).is_dir()
    assert resolve("black-forest-labs/FLUX.1-Kontext-dev", part) == "black-forest-labs/FLUX.1-Kontext-dev"
    assert resolve(Path("critters"), part) == Path("critters")  # a path of that name is not the built-in name


def test_a_missing_folder_is_not_taken_for_a_hub_id(tmp_path: Path):
    with pytest.raises(UsageError, match=f"no model in {tmp_path / 'gone'}; name a folder"):
        resolve(tmp_path / "gone", "dino")
    with pytest.raises(UsageError, match=r"no model in /x+; name a folder"):
        resolve("/" + "x" * 300, "dino")
    assert resolve(tmp_path, "dino") == tmp_path
