import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from customized_grpo.critters import world
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.rewards.clip import ClipFeatures, ClipIdentity, ClipPrompt

CPU = torch.device("cpu")
MODEL = FOLDER / "clip"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_samples(6, TEST_CRITTERS, 1)


@pytest.fixture(scope="module")
def images(samples: list[Sample]) -> Tensor:
    situations = [world.Situation(*(s.extra[key] for key in ("scene", "place", "hat"))) for s in samples]
    drawn = [world.draw(s.extra["critter"], situation) for s, situation in zip(samples, situations, strict=True)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def reward() -> ClipPrompt:
    return ClipPrompt(MODEL, device=CPU)


@torch.no_grad()
def by_hand(images: Tensor, prompts: list[str]) -> Tensor:
    """One picture and one prompt at a time; pictures in [-1, 1], prompts without padding."""
    model, tokenizer = CLIPModel.from_pretrained(MODEL).eval(), CLIPTokenizer.from_pretrained(MODEL)
    cosines = []
    for image, prompt in zip(images, prompts, strict=True):
        picture = model.visual_projection(model.vision_model(pixel_values=image[None] * 2 - 1).pooler_output)[0]
        text = model.text_projection(model.text_model(**tokenizer([prompt], return_tensors="pt")).pooler_output)[0]
        cosines.append(picture @ text / (picture.norm() * text.norm()))
    return torch.stack(cosines)


def test_the_prompt_reward_is_the_cosine_of_picture_and_prompt(
    reward: ClipPrompt, images: Tensor, samples: list[Sample]
):
    wrong = [replace(s, prompt=samples[i - 1].prompt) for i, s in enumerate(samples)]
    for part in (samples, wrong):
        cosines = reward(images, part)
        assert cosines.shape == (6,)
        expected = by_hand(images, [sample.prompt for sample in part])
        torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
        assert expected.std() > 1e-4  # the six differ, so that a mix-up would show
    assert (reward(images, samples) > reward(images, wrong) + 0.2).all()


def test_the_order_of_the_batch_does_not_matter(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    whole = reward(images, samples)
    order = [4, 1, 1, 5, 0, 3, 2, 4]
    torch.testing.assert_close(reward(images[order], [samples[i] for i in order]), whole[order], atol=1e-5, rtol=0)
    alone = torch.cat([reward(images[i : i + 1], samples[i : i + 1]) for i in order])
    torch.testing.assert_close(alone, whole[order], atol=1e-5, rtol=0)


def test_a_prompt_that_is_repeated_is_encoded_once(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    """Also across samples with ids of their own."""
    sizes: list[int] = []
    hook = reward.features.model.text_model.register_forward_hook(
        lambda *call: sizes.append(call[2].pooler_output.shape[0])
    )
    group = [replace(samples[i % 2], id=str(i)) for i in range(6)]
    cosines = reward(images, group)
    hook.remove()
    assert sizes == [2]
    torch.testing.assert_close(cosines, by_hand(images, [s.prompt for s in group]), atol=1e-5, rtol=0)


def test_the_right_prompt_is_ranked_first(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    for image, sample in zip(images, samples, strict=True):
        asked = [replace(sample, prompt=situation.prompt) for situation in world.SITUATIONS]
        cosines = reward(image.expand(160, 3, 32, 32), asked)
        assert asked[int(cosines.argmax())].prompt == sample.prompt
        assert cosines.abs().max() <= 1 + 1e-6


def test_a_prompt_beyond_the_models_length_is_cut_with_one_warning(
    reward: ClipPrompt, images: Tensor, samples: list[Sample]
):
    """20 tokens with both ends: 18 words count, the 19th does not."""
    words = ["a", "critter", "on", "the", "beach", "wearing", "a", "red", "hat"] * 2
    assert len(reward.features.tokenizer.tokenize(" ".join(words))) == 18
    prompts = [" ".join(part) for part in (words, [*words, "snow"], ["snow", *words[1:]])]
    asked = [replace(samples[0], prompt=p) for p in prompts]
    with pytest.warns(UserWarning, match="a prompt of 21 tokens is cut to the 20 that .* not scored: 'a crit") as said:
        fits, longer, other = reward(images[:1].expand(3, 3, 32, 32), asked)
    assert len(said) == 1
    assert abs(fits - longer) < 1e-5  # of one batch, but some processors round its rows otherwise
    assert abs(fits - other) > 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(images[:1].expand(3, 3, 32, 32), asked)


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_the_size_of_forward_passes_does_not_matter(batch: int, images: Tensor, samples: list[Sample]):
    features = ClipFeatures(MODEL, CPU)
    sizes: dict[str, list[int]] = {"vision_model": [], "text_model": []}
    for part, seen in sizes.items():
        hook = getattr(features.model, part).register_forward_hook
        hook(lambda *call, seen=seen: seen.append(call[2].pooler_output.shape[0]))
    cosines = features.cosines(images, samples, batch)
    torch.testing.assert_close(cosines, ClipPrompt(MODEL, device=CPU)(images, samples), atol=1e-5, rtol=0)
    assert [max(seen) for seen in sizes.values()] == [batch, batch]


def test_prompt_and_identity_share_the_pictures_of_an_encoder(images: Tensor, samples: list[Sample]):
    prompt, identity = ClipPrompt(MODEL, device=CPU), ClipIdentity(MODEL, device=CPU)
    assert prompt.features is identity.features
    sizes: list[int] = []
    hook = prompt.features.model.vision_model.register_forward_hook(lambda *call: sizes.append(len(call[2][0])))
    fresh = images.clone()  # those of the tests before are known
    prompt(fresh, samples)
    identity(fresh, samples)
    hook.remove()
    assert sizes.count(6) == 1


@pytest.mark.filterwarnings("ignore:a prompt of 22 tokens")
def test_other_words_are_taken(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    asked = [replace(sample, prompt="a café in Zürich, 3 cats!") for sample in samples]
    assert reward(images, asked).isfinite().all()


def test_scoring_leaves_no_gradient(reward: ClipPrompt, images: Tensor, samples: list[Sample]):
    assert not reward(images, samples).requires_grad
    assert not reward.features.model.training
