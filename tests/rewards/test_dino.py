"""Identity and the copy-paste index on the built-in DINO encoder."""

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import as_images, references, truth, views
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.rewards import encoder
from customized_grpo.rewards.dino import CopyPaste, DinoFeatures, DinoIdentity
from customized_grpo.rewards.identity import Identity, source_features

CPU = torch.device("cpu")
MODEL = FOLDER / "dino"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_samples(6, TEST_CRITTERS, 0)


@pytest.fixture(scope="module")
def model() -> Dinov2Model:
    return Dinov2Model.from_pretrained(MODEL).eval()


@torch.no_grad()
def by_hand(model: Dinov2Model, pictures: list[Image.Image]) -> Tensor:
    """Class tokens of pictures in [-1, 1]: the built-in processor neither resizes nor crops 32 x 32 pixels."""
    return model(pixel_values=as_images(pictures) * 2 - 1).last_hidden_state[:, 0]


def forward_sizes(features: DinoFeatures) -> list[int]:
    """Records the number of pictures in each later call of the encoder."""
    sizes: list[int] = []
    features.model.register_forward_hook(lambda *call: sizes.append(call[2].last_hidden_state.shape[0]))
    return sizes


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_copy_has_identity_1(samples: list[Sample]):
    for against, copies in (("reference", references(samples)), ("other_view", views(samples))):
        identity = DinoIdentity(MODEL, device=CPU, against=against)(as_images(copies), samples)
        torch.testing.assert_close(identity, torch.ones(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("against", ["reference", "other_view"])
def test_identity_is_the_cosine_of_class_tokens(against: str, samples: list[Sample], model: Dinov2Model):
    made = [truth(sample) for sample in samples]
    compared = references(samples) if against == "reference" else views(samples)
    first, second = by_hand(model, made), by_hand(model, compared)
    expected = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    identity = DinoIdentity(MODEL, device=CPU, against=against)(as_images(made), samples)
    assert identity.shape == (6,)
    assert identity.dtype == torch.float32
    torch.testing.assert_close(identity, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01  # the six differ, so a mix-up would show


def test_identity_does_not_depend_on_the_batch(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    order = [3, 0, 5, 1, 4, 2, 0]
    whole = DinoIdentity(MODEL, device=CPU)(images, samples)
    mixed = DinoIdentity(MODEL, device=CPU)(images[order], [samples[i] for i in order])
    alone = torch.cat([DinoIdentity(MODEL, device=CPU)(images[i : i + 1], samples[i : i + 1]) for i in order])
    torch.testing.assert_close(mixed, whole[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, whole[order], atol=1e-5, rtol=0)


def test_a_sample_without_another_view_cannot_be_scored(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    bare = [replace(s, other_views=()) if i % 2 else s for i, s in enumerate(samples)]
    for reward in (DinoIdentity(MODEL, device=CPU, against="other_view"), CopyPaste(MODEL, device=CPU)):
        assert reward(images, bare).isnan().tolist() == [False, True] * 3
        torch.testing.assert_close(reward(images, bare)[::2], reward(images, samples)[::2], atol=1e-5, rtol=0)
    assert not DinoIdentity(MODEL, device=CPU)(images, bare).isnan().any()


def test_references_are_encoded_once_and_alone(samples: list[Sample]):
    """Alone, so that their features do not depend on other new pictures; all users of the encoder share them."""
    group = [sample for sample in samples[:2] for _ in range(3)]
    images = as_images([truth(sample) for sample in group])
    features = DinoFeatures(MODEL, CPU)
    reward, copy_paste = Identity(features), CopyPaste(MODEL, device=CPU)
    copy_paste.features = features
    sizes = forward_sizes(features)
    first = reward(images, group)
    assert sizes == [6, 1, 1]  # the images, and each subject once
    sizes.clear()
    again = reward(images.clone(), group)
    assert sizes == [6]
    assert torch.equal(first, again)
    sizes.clear()
    copy_paste(images.clone(), group)
    assert sizes == [6, 1, 1]  # the other view of each; the references are cached
    sizes.clear()
    reworded = [replace(sample, id=f"{sample.id} again", prompt="another prompt") for sample in group]
    reward(images.clone(), reworded)
    assert sizes == [6]  # the same pictures under another prompt


def test_generated_images_are_encoded_once_for_several_metrics(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    features = DinoFeatures(MODEL, CPU)
    rewards = [Identity(features), Identity(features, against="other_view"), Identity(features, region="mask")]
    sizes = forward_sizes(features)
    first = [reward(images, samples) for reward in rewards]
    assert sizes.count(6) == 1
    images.mul_(0.5)  # the same tensor with different pictures
    assert not torch.equal(rewards[0](images, samples), first[0])
    assert sizes.count(6) == 2
    with torch.inference_mode():
        unversioned = images.clone()
        before = rewards[0](unversioned, samples)
        unversioned.zero_()
        assert not torch.equal(rewards[0](unversioned, samples), before)


@pytest.mark.parametrize("size", [(1000, 1), (600, 2), (1, 301), (3, 100), (50, 401), (303, 20)])
def test_a_very_long_picture_is_cut_before_it_is_enlarged(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    """The features are those of the whole picture up to rounding: half a pixel's width at its odd sizes."""
    rows = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(rows).resize(size, Image.Resampling.BICUBIC)
    features, process, seen = DinoFeatures(MODEL, CPU, "benchmark"), BitImageProcessorPil.__call__, []

    def seeing(self: BitImageProcessorPil, images: list[Image.Image], **settings: Any) -> Any:
        seen.append(images[0].size)
        return process(self, images, **settings)

    monkeypatch.setattr(BitImageProcessorPil, "__call__", seeing)
    found = features([picture])
    monkeypatch.setattr(encoder, "LONGEST", 10_000)
    torch.testing.assert_close(found, features([picture]), atol=5e-3, rtol=0)
    (first, whole) = seen
    assert whole == size
    assert max(first) <= 8 * min(first) + 1


def test_a_processor_that_squashes_gets_the_whole_picture():
    """Without a cut in the middle every part of the picture counts."""
    long = Image.new("RGB", (400, 4), "red")
    squashed = DinoFeatures(MODEL, CPU)([long])
    long.paste("blue", (0, 0, 150, 4))
    assert not torch.allclose(DinoFeatures(MODEL, CPU)([long]), squashed, atol=1e-2)


def test_rewards_share_an_encoder_until_the_last_of_them_is_gone():
    first, second = DinoIdentity(MODEL, device=CPU), CopyPaste(MODEL, device=CPU)
    assert first.features is second.features
    other = DinoIdentity(MODEL, device=CPU, preprocess="benchmark")
    assert other.features is not first.features
    freed = weakref.ref(other.features)
    del other
    gc.collect()
    assert freed() is None


def test_features_of_generated_images_do_not_keep_them_alive(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    features, freed = DinoFeatures(MODEL, CPU), weakref.ref(images)
    features.image_features(images)
    del images
    assert freed() is None


def test_only_the_most_recently_used_features_are_kept(samples: list[Sample], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoder, "CACHED", 2)
    features = DinoFeatures(MODEL, CPU)
    sizes = forward_sizes(features)
    for number in (0, 1, 0, 2, 0, 1):  # 2 evicts 1, because 0 was used since
        source_features(features, samples[number].references[0])
    assert len(sizes) == 4


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_identity_does_not_depend_on_the_size_of_forward_passes(batch: int, samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    features = DinoFeatures(MODEL, CPU)
    sizes = forward_sizes(features)
    scores = Identity(features, batch=batch)(images, samples)
    torch.testing.assert_close(scores, DinoIdentity(MODEL, device=CPU)(images, samples), atol=1e-5, rtol=0)
    assert max(sizes) == batch


def test_lists_that_share_ids_do_not_share_references():
    """An id is unique within its list, but another list may use it for another subject."""
    one, other = (draw_samples(6, TEST_CRITTERS, seed) for seed in (0, 1))
    other = [replace(sample, id=first.id) for sample, first in zip(other, one, strict=True)]
    reward, copy_paste = DinoIdentity(MODEL, device=CPU), CopyPaste(MODEL, device=CPU)
    for part in (one, other, one):
        copies = as_images(references(part))
        torch.testing.assert_close(reward(copies, part), torch.ones(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(copy_paste(copies, part), torch.ones(6), atol=1e-4, rtol=0)


def test_pictures_of_any_size_are_scored(samples: list[Sample], model: Dinov2Model):
    """Doubled pixel by pixel and shrunk again by the processor: nearly the same picture."""
    large = [replace(s, references=(references([s])[0].resize((64, 64), Image.Resampling.NEAREST),)) for s in samples]
    images = as_images(references(samples)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(DinoIdentity(MODEL, device=CPU)(images, large), torch.ones(6), atol=1e-5, rtol=0)
    cosines = torch.cosine_similarity(DinoFeatures(MODEL, CPU)(references(large)), by_hand(model, references(samples)))
    assert cosines.min() > 0.9


def test_scoring_keeps_no_gradient(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples]).requires_grad_()
    reward = DinoIdentity(MODEL, device=CPU)
    assert not reward(images.detach(), samples).requires_grad
    assert not reward.features.model.training
    assert not any(p.requires_grad for p in reward.features.model.parameters())


# --- copy-paste index ------------------------------------------------------------------------------------------------


def test_copy_paste_is_1_for_the_reference_and_minus_1_for_the_other_view(samples: list[Sample]):
    index = CopyPaste(MODEL, device=CPU)
    torch.testing.assert_close(index(as_images(references(samples)), samples), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(index(as_images(views(samples)), samples), -torch.ones(6), atol=1e-4, rtol=0)


def test_copy_paste_in_between_is_the_difference_of_angles(samples: list[Sample], model: Dinov2Model):
    """Angles by acos in float64: (view to image - reference to image) / (view to reference)."""
    made = [truth(sample) for sample in samples]
    image, reference, view = (by_hand(model, p).double().numpy() for p in (made, references(samples), views(samples)))

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        return math.acos(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    expected = [(angle(v, i) - angle(r, i)) / angle(v, r) for i, r, v in zip(image, reference, view, strict=True)]
    index = CopyPaste(MODEL, device=CPU)(as_images(made), samples)
    assert index.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) < 1


def test_copy_paste_changes_sign_if_reference_and_view_are_swapped(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    swapped = [replace(s, references=s.other_views, other_views=s.references) for s in samples]
    index = CopyPaste(MODEL, device=CPU)
    torch.testing.assert_close(index(images, swapped), -index(images, samples), atol=1e-4, rtol=0)


def test_copy_paste_cannot_be_scored_if_view_and_reference_are_equal(samples: list[Sample]):
    twins = [replace(s, other_views=s.references) for s in samples]
    images = as_images([truth(s) for s in samples])
    assert CopyPaste(MODEL, device=CPU)(images, twins).isnan().all()
    third = [replace(s, other_views=(*s.references, *s.other_views)) for s in samples]  # then another view is taken
    torch.testing.assert_close(
        CopyPaste(MODEL, device=CPU)(images, third), CopyPaste(MODEL, device=CPU)(images, samples)
    )
