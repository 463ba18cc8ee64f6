"""The shipped files are what their libraries expect: loaded without a line of ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from customized_grpo.critters import world
from customized_grpo.critters.weights import FOLDER, resolve
from customized_grpo.fields import BUILT_IN

LOAD_WITHOUT_US = """
import json, sys
from pathlib import Path
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Model

weights, folder = Path(sys.argv[1]), Path(sys.argv[2])
prompt = "a critter on the beach, at the left, wearing a red hat"
reference = Image.open(folder / "reference.png")

pipe = FluxKontextPipeline.from_pretrained(weights / "generator")
pipe.set_progress_bar_config(disable=True)
image = pipe(
    image=reference, prompt=prompt, height=32, width=32, max_area=32 * 32, _auto_resize=False,
    num_inference_steps=4, max_sequence_length=16, generator=torch.Generator().manual_seed(0),
).images[0]
image.save(folder / "made.png")

dino, processor = (kind.from_pretrained(weights / "dino") for kind in (Dinov2Model, AutoImageProcessor))
pixels = processor(images=reference, return_tensors="pt")["pixel_values"]
clip, clip_processor = (kind.from_pretrained(weights / "clip") for kind in (CLIPModel, AutoImageProcessor))
clip_pixels = clip_processor(images=reference, return_tensors="pt")["pixel_values"]
tokens = CLIPTokenizer.from_pretrained(weights / "clip")([prompt], padding="max_length", return_tensors="pt")
with torch.no_grad():
    feature = dino(pixel_values=pixels).last_hidden_state[0, 0]
    picture = clip.get_image_features(pixel_values=clip_pixels).pooler_output[0]
    text = clip.get_text_features(**tokens).pooler_output[0]
print(json.dumps({
    "ours": "customized_grpo" in sys.modules,
    "classes": [type(part).__name__ for part in (pipe, dino, clip)],
    "pixels": pixels.flatten().tolist(),
    "clip_pixels": clip_pixels.flatten().tolist(),
    "feature": feature.tolist(),
    "cosine": torch.cosine_similarity(picture, text, dim=0).item(),
}))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a program that knows nothing of this package gets out of the shipped files."""
    folder = tmp_path_factory.mktemp("stranger")
    world.picture(7, world.Situation("snow", "centre", "no")).save(folder / "reference.png")
    command = [sys.executable, "-c", LOAD_WITHOUT_US, str(FOLDER), str(folder)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), folder


def test_plain_diffusers_and_transformers_load_every_part(stranger: tuple[dict[str, Any], Path]):
    report, _ = stranger
    assert not report["ours"]
    assert report["classes"] == ["FluxKontextPipeline", "Dinov2Model", "CLIPModel"]


def test_plain_diffusers_makes_a_picture(stranger: tuple[dict[str, Any], Path]):
    picture = Image.open(stranger[1] / "made.png")
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert np.asarray(picture).std() > 10  # no flat field


def test_the_image_processors_hand_on_every_pixel(stranger: tuple[dict[str, Any], Path]):
    """[-1, 1], neither resized nor cropped."""
    report, folder = stranger
    expected = np.asarray(Image.open(folder / "reference.png")).transpose(2, 0, 1) / 127.5 - 1
    for name in ("pixels", "clip_pixels"):
        np.testing.assert_allclose(np.reshape(report[name], (3, 32, 32)), expected, atol=1e-6)


def test_the_encoders_give_features(stranger: tuple[dict[str, Any], Path]):
    report, _ = stranger
    assert len(report["feature"]) == 64
    assert np.std(report["feature"]) > 0.1
    assert -1 <= report["cosine"] <= 1


def test_all_weights_are_safetensors_and_small():
    sizes = [file.stat().st_size for file in FOLDER.rglob("*.safetensors")]
    assert len(sizes) == 6  # transformer, VAE, two text encoders, DINO, CLIP
    assert sum(sizes) <= 12e6
    shipped = {file.suffix for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert shipped == {".safetensors", ".json", ".py"}  # no pickles


@pytest.mark.parametrize("part", ["generator", "dino", "clip"])
def test_the_built_in_name_stands_for_the_shipped_folder(part: Any):
    assert resolve(BUILT_IN, part) == FOLDER / part
    assert (FOLDER / part).is_dir()
    assert resolve("black-forest-labs/FLUX.1-Kontext-dev", part) == "black-forest-labs/FLUX.1-Kontext-dev"
    assert resolve(Path("critters"), part) == Path("critters")  # a folder of that name is a folder


def test_a_missing_folder_is_no_hub_id(tmp_path: Path):
    with pytest.raises(ValueError, match=f"no model in {tmp_path / 'gone'}; name a folder"):
        resolve(tmp_path / "gone", "dino")
    assert resolve(tmp_path, "dino") == tmp_path
