"""CLIP-T on the built-in encoder, CLIP-I on a checkpoint in the format of the published ones."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_checkpoint import PREPROCESSING, save_clip
from pictures import as_images, noise, truth
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from customized_grpo.critters import world
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.files.notices import LongPrompts
from customized_grpo.files.pretrained import ModelError
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.clip import ClipFeatures, ClipIdentity, ClipPrompt

CPU = torch.device("cpu")
MODEL = FOLDER / "clip"


# --- CLIP-T ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_samples(6, TEST_CRITTERS, 1)


@pytest.fixture(scope="module")
def images(samples: list[Sample]) -> Tensor:
    return as_images([truth(sample) for sample in samples])


@pytest.fixture(scope="module")
def reward() -> ClipPrompt:
    return ClipPrompt(MODEL, device=CPU)


@torch.no_grad()
def clip_t_by_hand(images: Tensor, prompts: list[str]) -> Tensor:
    """One picture and one prompt at a time; pictures in [-1, 1], prompts without padding."""
    model, tokenizer = CLIPModel.from_pretrained(MODEL).eval(), CLIPTokenizer.from_pretrained(MODEL)
    cosines = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = model.visual_projection(model.vision_model(pixel_values=image[None] * 2 - 1).pooler_output)[0]
        text = model.text_projection(model.text_model(**tokenizer([prompt], return_tensors="pt")).pooler_output)[0]
        cosines.append(picture @ text / (picture.norm() * text.norm()))
    return torch.stack(cosines)


def test_clip_t_is_the_cosine_of_picture_and_prompt(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    wrong = [replace(s, prompt=samples[i - 1].prompt) for i, s in enumerate(samples)]
    for part in (samples, wrong):
        cosines = reward(images, part)
        assert cosines.shape == (6,)
        expected = clip_t_by_hand(images, [sample.prompt for sample in part])
        torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
        assert expected.std() > 1e-4  # the six differ, so a mix-up would show
    assert (reward(images, samples) > reward(images, wrong) + 0.2).all()


def test_the_order_of_images_does_not_matter(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    expected = reward(images, samples)
    order = [4, 1, 1, 5, 0, 3, 2, 4]
    shuffled = reward(images[order], [samples[i] for i in order])
    torch.testing.assert_close(shuffled, expected[order], atol=1e-5, rtol=0)
    alone = torch.cat([reward(images[i : i + 1], samples[i : i + 1]) for i in order])
    torch.testing.assert_close(alone, expected[order], atol=1e-5, rtol=0)


def test_a_repeated_prompt_is_encoded_once(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    """Also across samples with different ids."""
    sizes: list[int] = []
    hook = reward.features.model.text_model.register_forward_hook(
        lambda *call: sizes.append(call[2].pooler_output.shape[0])
    )
    group = [replace(samples[i % 2], id=str(i)) for i in range(6)]
    cosines = reward(images, group)
    hook.remove()
    assert sizes == [2]
    torch.testing.assert_close(cosines, clip_t_by_hand(images, [s.prompt for s in group]), atol=1e-5, rtol=0)


def test_the_right_prompt_ranks_first(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    for image, sample in zip(images[:3], samples[:3], strict=True):
        candidates = [replace(sample, prompt=situation.prompt) for situation in world.SITUATIONS]
        cosines = reward(image.expand(160, 3, 32, 32), candidates)
        assert candidates[int(cosines.argmax())].prompt == sample.prompt
        assert cosines.abs().max() <= 1 + 1e-6


def test_a_prompt_that_is_too_long_is_cut_with_one_warning(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    """20 tokens including both ends: 18 words count, the 19th does not."""
    words = ["a", "critter", "on", "the", "beach", "wearing", "a", "red", "hat"] * 2
    assert len(reward.features.tokenizer.tokenize(" ".join(words))) == 18
    prompts = [" ".join(part) for part in (words, [*words, "snow"], ["snow", *words[1:]])]
    group = [replace(samples[0], prompt=prompt) for prompt in prompts]
    with pytest.warns(UserWarning, match="a prompt of 21 tokens is cut to the 20 that .*: 'a critter") as caught:
        fits, longer, different = reward(images[:1].expand(3, 3, 32, 32), group)
    assert len(caught) == 1
    assert abs(fits - longer) < 1e-5  # of one batch, but some processors round its rows differently
    assert abs(fits - different) > 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(images[:1].expand(3, 3, 32, 32), group)
    another = ClipPrompt(MODEL, device=CPU)
    assert another.features is reward.features
    with pytest.warns(UserWarning, match="a prompt of 21 tokens"):  # a later run names its long prompts too
        another(images[:1], group[1:2])


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_size_of_forward_passes_does_not_matter(batch: int, images: Tensor, samples: list[Sample]):
    features = ClipFeatures(MODEL, CPU)
    sizes: dict[str, list[int]] = {"vision_model": [], "text_model": []}
    for part, part_sizes in sizes.items():
        hook = getattr(features.model, part).register_forward_hook
        hook(lambda *call, part_sizes=part_sizes: part_sizes.append(call[2].pooler_output.shape[0]))
    cosines = features.cosines(images, samples, LongPrompts(), batch)
    torch.testing.assert_close(cosines, ClipPrompt(MODEL, device=CPU)(images, samples), atol=1e-5, rtol=0)
    assert [max(part_sizes) for part_sizes in sizes.values()] == [batch, batch]


def test_clip_t_and_clip_i_encode_the_images_once(images: Tensor, samples: list[Sample]):
    prompt, identity = ClipPrompt(MODEL, device=CPU), ClipIdentity(MODEL, device=CPU)
    assert prompt.features is identity.features
    sizes: list[int] = []
    hook = prompt.features.model.vision_model.register_forward_hook(lambda *call: sizes.append(len(call[2][0])))
    fresh = images.clone()  # the features of `images` may be known from another test
    prompt(fresh, samples)
    identity(fresh, samples)
    hook.remove()
    assert sizes.count(6) == 1


@pytest.mark.filterwarnings("ignore:a prompt of 22 tokens")
def test_any_characters_can_be_scored(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    foreign = [replace(sample, prompt="a café in Zürich, 3 cats!") for sample in samples]
    assert reward(images, foreign).isfinite().all()


def test_scoring_keeps_no_gradient(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    assert not reward(images, samples).requires_grad
    assert not reward.features.model.training


# --- CLIP-I ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def model(folder: Path) -> CLIPModel:
    return save_clip(folder)


@torch.no_grad()
def embedding_by_hand(model: CLIPModel, picture: Image.Image) -> Tensor:
    """300 x 400 -> 224 x 298 (298.67, rounded down); the middle 224 of 298 start at 37."""
    picture = picture.resize((224, 298), Image.Resampling.BICUBIC).crop((0, 37, 224, 261))
    mean, std = (torch.tensor(PREPROCESSING[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    pixels = (as_images([picture]) - mean) / std
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]


def test_clip_i_is_the_cosine_of_image_embeddings(folder: Path, model: CLIPModel):
    sample = Sample(id="noise", subject="noise", prompt="noise", references=(noise(0),), other_views=(noise(3),))
    images = as_images([noise(0), noise(1), noise(2)])
    for against, compared in (("reference", noise(0)), ("other_view", noise(3))):
        scores = parse_reward(f"clip_i model={folder} against={against} batch=2").make(CPU)(images, [sample] * 3)
        target = embedding_by_hand(model, compared)
        expected = [torch.cosine_similarity(embedding_by_hand(model, noise(i)), target, dim=0) for i in range(3)]
        torch.testing.assert_close(scores, torch.stack(expected), atol=1e-3, rtol=0)
        assert scores.std() > 0.003  # the three differ, so a mix-up would show
        assert (scores.shape, scores.dtype, scores.requires_grad) == ((3,), torch.float32, False)


@pytest.mark.usefixtures("model")
def test_clip_i_has_the_regions_and_means_of_dino(folder: Path):
    all_white = Image.new("L", (300, 400), 255)
    sample = Sample(id="noise", subject="noise", prompt="noise", references=(noise(0), noise(1)), mask=all_white)
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


# --- checkpoints whose parts do not fit ------------------------------------------------------------------------------


def test_another_models_tokenizer_is_refused(tmp_path: Path):
    save_clip(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["critter"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 55 tokens, but .* knows only 54; use the tokenizer that"):
        parse_reward(f"clip_t model={tmp_path}").make(CPU)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop_size": {"height": 32, "width": 32}}, r"Input image size \(32\*32\) doesn't match model \(224\*224\)"),
        ({"image_mean": [0.5, 0.5]}, "must have 3 elements"),
    ],
)
def test_an_image_processor_that_does_not_fit_the_model_is_refused_at_once(
    tmp_path: Path, change: dict[str, object], reason: str
):
    save_clip(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | change))
    with pytest.raises(ModelError, match=f"^{tmp_path} cannot be loaded: .*{reason}") as error:
        parse_reward(f"clip_i model={tmp_path}").make(CPU)
    assert "\n" not in str(error.value)
