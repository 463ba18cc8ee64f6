from pathlib import Path

import pytest
import torch
from clip_checkpoint import PREPROCESSING, save_clip
from pictures import as_images, noise
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from customized_grpo.data import Sample
from customized_grpo.rewards.by_name import parse_reward

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def model(folder: Path) -> CLIPModel:
    return save_clip(folder)


@torch.no_grad()
def by_hand(model: CLIPModel, picture: Image.Image) -> Tensor:
    """300 x 400 -> 224 x 298 (298.67, cut off); the middle 224 of 298 begin at 37."""
    picture = picture.resize((224, 298), Image.Resampling.BICUBIC).crop((0, 37, 224, 261))
    mean, std = (torch.tensor(PREPROCESSING[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    pixels = (as_images([picture]) - mean) / std
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]


def test_clip_i_is_the_cosine_of_image_embeddings(folder: Path, model: CLIPModel):
    sample = Sample(id="noise", subject="noise", prompt="noise", references=(noise(0),), other_views=(noise(3),))
    images = as_images([noise(0), noise(1), noise(2)])
    for against, compared in (("reference", noise(0)), ("other_view", noise(3))):
        scores = parse_reward(f"clip_i model={folder} against={against} batch=2").make(CPU)(images, [sample] * 3)
        expected = [
            torch.cosine_similarity(by_hand(model, noise(i)), by_hand(model, compared), dim=0) for i in range(3)
        ]
        torch.testing.assert_close(scores, torch.stack(expected), atol=1e-3, rtol=0)
        assert scores.std() > 0.003  # the three differ, so that a mix-up would show
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad


def test_regions_and_several_pictures_are_those_of_dino(folder: Path, model: CLIPModel):  # noqa: ARG001
    whole = Image.new("L", (300, 400), 255)
    sample = Sample(id="noise", subject="noise", prompt="noise", references=(noise(0), noise(1)), mask=whole)
    images = as_images([noise(0), noise(1)])
    score = {
        line: parse_reward(f"clip_i model={folder} {line}").make(CPU)(images, [sample] * 2)
        for line in ("over=best", "over=min", "over=mean", "region=mask", "region=centre over=best")
    }
    for line in ("over=best", "region=centre over=best"):
        torch.testing.assert_close(score[line], torch.ones(2), atol=1e-5, rtol=0)
    assert score["over=min"][0].item() == pytest.approx(score["over=min"][1].item(), abs=1e-5)
    torch.testing.assert_close(score["over=mean"], (score["over=min"] + 1) / 2, atol=1e-5, rtol=0)
    assert score["region=mask"][0].item() == pytest.approx(1, abs=1e-5)
    assert score["region=mask"][1].item() == pytest.approx(score["over=min"][0].item(), abs=1e-5)
