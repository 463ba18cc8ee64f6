"""PickScore against the code of its model card, on a tiny checkpoint with random weights."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_checkpoint import save_clip
from torch import Tensor
from transformers import AutoModel, CLIPProcessor

from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.rewards import pickscore
from customized_grpo.rewards.by_name import parse_reward

CPU = torch.device("cpu")
PROMPTS = ["a dog on the beach", "a cat", "a dog on the beach", "three boats at night"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickscore")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (256, 256), mode="bilinear")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    picture = to_pictures(torch.zeros(1, 3, 8, 8))[0]
    return [Sample(id=str(i), subject="it", prompt=p, references=(picture,)) for i, p in enumerate(PROMPTS)]


@torch.no_grad()
def model_card(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """The model card's code, for one picture and one prompt at a time, with its padding."""
    model: Any = AutoModel.from_pretrained(folder).eval()
    processor: Any = CLIPProcessor.from_pretrained(folder)
    scores = []
    for picture, prompt in zip(to_pictures(images), prompts, strict=True):
        pixels = processor(images=picture, padding=True, truncation=True, max_length=77, return_tensors="pt")
        tokens = processor(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
        picture_embedding = model.get_image_features(**pixels).pooler_output
        text_embedding = model.get_text_features(**tokens).pooler_output
        cosine = torch.nn.functional.cosine_similarity(picture_embedding, text_embedding)
        scores.append(model.logit_scale.exp() * cosine[0])
    return torch.stack(scores)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_pickscore_is_a_hundred_times_the_cosine(batch: int, folder: Path, images: Tensor, samples: list[Sample]):
    scores = parse_reward(f"pickscore model={folder} batch={batch}").make(CPU)(images, samples)
    expected = model_card(folder, images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.1  # the four differ, so a mix-up would show
    assert (scores.shape, scores.dtype, scores.requires_grad) == ((4,), torch.float32, False)


def test_the_scale_comes_from_the_checkpoint(tmp_path: Path, folder: Path, images: Tensor, samples: list[Sample]):
    save_clip(tmp_path, scale=float(np.log(10)))
    tenth, full = (parse_reward(f"pickscore model={f}").make(CPU)(images, samples) for f in (tmp_path, folder))
    torch.testing.assert_close(tenth * 10, full, atol=1e-2, rtol=0)


def test_a_checkpoint_without_tokenizer_and_image_processor_uses_those_of_clip(
    tmp_path: Path, folder: Path, images: Tensor, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.setattr(pickscore, "PROCESSOR", str(folder))
    bare, complete = (parse_reward(f"pickscore model={f}").make(CPU)(images, samples) for f in (tmp_path, folder))
    assert torch.equal(bare, complete)
    monkeypatch.undo()
    named = parse_reward(f"pickscore model={tmp_path} processor={folder}").make(CPU)
    assert torch.equal(named(images, samples), complete)
    assert pickscore.PROCESSOR == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def test_a_long_prompt_is_cut_with_a_warning(folder: Path, images: Tensor, samples: list[Sample]):
    """Each letter is a token here: 76 of them and both ends make 78."""
    long = Sample(id="long", subject="it", prompt="a" * 76, references=samples[0].references)
    with pytest.warns(UserWarning, match="a prompt of 78 tokens is cut to the 77"):
        parse_reward(f"pickscore model={folder}").make(CPU)(images[:1], [long])
