"""DINO, DINOv2 and DINOv3 in the published formats, with tiny random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import as_images, noise
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, ViTModel

from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.files.pretrained import ModelError
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.dino import DinoFeatures

CPU = torch.device("cpu")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# preprocessor_config.json as published by facebook/dinov2-base, facebook/dino-vits16 (latest revision) and
# facebook/dinov3-vits16-pretrain-lvd1689m.
CROPPED = IMAGENET | {
    "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "resample": 3, "rescale_factor": 1 / 255,
    "do_resize": True, "size": {"shortest_edge": 256}, "do_rescale": True, "do_normalize": True,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
}  # fmt: skip
SQUASHED = IMAGENET | {
    "feature_extractor_type": "ViTFeatureExtractor", "do_normalize": True, "do_resize": True, "resample": 2,
    "size": 224,
}  # fmt: skip
TENSORS = IMAGENET | {
    "image_processor_type": "DINOv3ViTImageProcessorFast", "crop_size": None, "data_format": "channels_first",
    "default_to_square": True, "device": None, "do_center_crop": None, "do_convert_rgb": None, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "resample": 2, "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}  # fmt: skip
CHECKPOINTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "dinov2": (Dinov2Model, {"patch_size": 14, "mlp_ratio": 2}, CROPPED),
    "registers": (Dinov2WithRegistersModel, {"patch_size": 14, "mlp_ratio": 2}, CROPPED),
    "dino": (ViTModel, {"patch_size": 16}, SQUASHED),
    "dinov3": (DINOv3ViTModel, {"patch_size": 16, "num_register_tokens": 4}, TENSORS),
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, dict[str, Any]]:
    """A folder as on the hub, its model and its preprocessing."""
    kind, more, preprocessing = CHECKPOINTS[request.param]
    torch.manual_seed(0)
    config = kind.config_class(**TINY, **more, image_size=224)
    model = kind(config, **({"add_pooling_layer": False} if kind is ViTModel else {})).eval()
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape))  # initial ones hardly depend on the picture
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return tmp_path, model, preprocessing


def prepared(picture: Image.Image, *, squash: bool) -> Tensor:
    """[1, 3, 224, 224], prepared with Pillow and ImageNet's mean and deviation."""
    if squash:
        picture = picture.resize((224, 224), Image.Resampling.BILINEAR)
    else:  # 300 x 400 -> 256 x 341; the middle 224 of 341 start at 58.5
        assert picture.size == (300, 400)
        picture = picture.resize((256, 341), Image.Resampling.BICUBIC).crop((16, 58, 240, 282))
    mean, std = (torch.tensor(IMAGENET[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    return (as_images([picture]) - mean) / std


@torch.no_grad()
def test_every_dino_is_recognised_by_its_config_and_gives_its_class_token(
    checkpoint: tuple[Path, Any, dict[str, Any]],
):
    folder, model, preprocessing = checkpoint
    pixels = prepared(noise(0), squash=preprocessing is not CROPPED)
    expected = torch.nn.functional.normalize(model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)
    features = DinoFeatures(folder, CPU)
    assert type(features.model) is type(model)
    torch.testing.assert_close(features([noise(0)]), expected, atol=1e-3, rtol=0)
    assert (features([noise(1)]) - expected).abs().max() > 0.01  # another picture has different features
    sample = Sample(id="noise", subject="noise", prompt="noise", references=(noise(0),))
    reward = parse_reward(f"dino model={folder} batch=1").make(CPU)
    scores = reward(as_images([noise(0), noise(1)]), [sample] * 2)
    assert scores[0].item() == pytest.approx(1, abs=1e-5)
    assert -1 <= scores[1].item() < 0.999


@torch.no_grad()
def test_the_benchmark_crops_where_the_checkpoint_squashes(checkpoint: tuple[Path, Any, dict[str, Any]]):
    folder, model, preprocessing = checkpoint
    expected = model(pixel_values=prepared(noise(0), squash=False)).last_hidden_state[:, 0]
    benchmark = DinoFeatures(folder, CPU, "benchmark")([noise(0)])
    torch.testing.assert_close(benchmark, torch.nn.functional.normalize(expected, dim=-1), atol=1e-3, rtol=0)
    same = torch.allclose(benchmark, DinoFeatures(folder, CPU)([noise(0)]), atol=1e-5)
    assert same == (preprocessing is CROPPED)


def test_weights_in_half_precision_run_in_float32(checkpoint: tuple[Path, Any, dict[str, Any]], tmp_path: Path):
    folder, model, _ = checkpoint
    model.half().save_pretrained(tmp_path)
    features = DinoFeatures(folder, CPU)
    assert next(features.model.parameters()).dtype == torch.float32


def test_another_kind_of_checkpoint_is_refused():
    with pytest.raises(ModelError, match=r"clip is a 'clip' checkpoint; use one of type dinov2, .*, vit$"):
        DinoFeatures(FOLDER / "clip", CPU)
