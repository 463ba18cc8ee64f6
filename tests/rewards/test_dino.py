import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model

from customized_grpo.critters import world
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.rewards.dino import CopyPaste, DinoFeatures, DinoIdentity

CPU = torch.device("cpu")
MODEL = FOLDER / "dino"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_samples(6, TEST_CRITTERS, 0)


@pytest.fixture(scope="module")
def model() -> Dinov2Model:
    return Dinov2Model.from_pretrained(MODEL).eval()


def as_images(pictures: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def truth(sample: Sample) -> Image.Image:
    situation = world.Situation(*(sample.extra[key] for key in ("scene", "place", "hat")))
    return world.picture(sample.extra["critter"], situation)


@torch.no_grad()
def by_hand(model: Dinov2Model, pictures: list[Image.Image]) -> Tensor:
    """Class tokens of pictures in [-1, 1]: the built-in processor neither resizes nor crops 32x32 pixels."""
    return model(pixel_values=as_images(pictures) * 2 - 1).last_hidden_state[:, 0]


def references(samples: list[Sample]) -> list[Image.Image]:
    return [sample.reference_images()[0] for sample in samples]


def views(samples: list[Sample]) -> list[Image.Image]:
    return [sample.other_view_images()[0] for sample in samples]


def forward_sizes(features: DinoFeatures) -> list[int]:
    """How many pictures each call of the encoder holds, from now on."""
    sizes: list[int] = []
    features.model.register_forward_hook(lambda *call: sizes.append(call[2].last_hidden_state.shape[0]))
    return sizes


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_copy_has_identity_1(samples: list[Sample]):
    for against, copies in (("reference", references(samples)), ("other_view", views(samples))):
        identity = DinoIdentity(MODEL, against, CPU)(as_images(copies), samples)
        torch.testing.assert_close(identity, torch.ones(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("against", ["reference", "other_view"])
def test_identity_is_the_cosine_of_class_tokens(against: str, samples: list[Sample], model: Dinov2Model):
    made = [truth(sample) for sample in samples]
    compared = references(samples) if against == "reference" else views(samples)
    first, second = by_hand(model, made), by_hand(model, compared)
    expected = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    identity = DinoIdentity(MODEL, against, CPU)(as_images(made), samples)
    assert identity.shape == (6,)
    assert identity.dtype == torch.float32
    torch.testing.assert_close(identity, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01  # the six differ, so that a mix-up would show


def test_identity_does_not_depend_on_the_batch(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    order = [3, 0, 5, 1, 4, 2, 0]
    whole = DinoIdentity(MODEL, "reference", CPU)(images, samples)
    mixed = DinoIdentity(MODEL, "reference", CPU)(images[order], [samples[i] for i in order])
    alone = torch.cat([DinoIdentity(MODEL, "reference", CPU)(images[i : i + 1], samples[i : i + 1]) for i in order])
    torch.testing.assert_close(mixed, whole[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, whole[order], atol=1e-5, rtol=0)


def test_without_another_view_there_is_nothing_to_compare_with(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    bare = [replace(s, other_views=()) if i % 2 else s for i, s in enumerate(samples)]
    for reward in (DinoIdentity(MODEL, "other_view", CPU), CopyPaste(MODEL, CPU)):
        assert reward(images, bare).isnan().tolist() == [False, True] * 3
        torch.testing.assert_close(reward(images, bare)[::2], reward(images, samples)[::2], atol=1e-5, rtol=0)
    assert not DinoIdentity(MODEL, "reference", CPU)(images, bare).isnan().any()


def test_references_are_encoded_once(samples: list[Sample]):
    group = [sample for sample in samples[:2] for _ in range(3)]
    images = as_images([truth(sample) for sample in group])
    reward = DinoIdentity(MODEL, "reference", CPU)
    sizes = forward_sizes(reward.features)
    first = reward(images, group)
    assert sorted(sizes) == [1, 1, 6]  # the images, and each subject once
    sizes.clear()
    again = reward(images, group)
    assert sizes == [6]
    assert torch.equal(first, again)
    copy_paste = CopyPaste(MODEL, CPU)
    sizes = forward_sizes(copy_paste.features)
    copy_paste(images, group)
    assert sorted(sizes) == [1, 1, 1, 1, 6]  # reference and other view of each
    sizes.clear()
    copy_paste(images, group)
    assert sizes == [6]


def test_lists_that_share_ids_do_not_share_references():
    """An id is unique in its list; another list may use it for another subject."""
    one, other = (draw_samples(6, TEST_CRITTERS, seed) for seed in (0, 1))
    other = [replace(sample, id=first.id) for sample, first in zip(other, one, strict=True)]
    reward, copy_paste = DinoIdentity(MODEL, "reference", CPU), CopyPaste(MODEL, CPU)
    for part in (one, other, one):
        copies = as_images(references(part))
        torch.testing.assert_close(reward(copies, part), torch.ones(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(copy_paste(copies, part), torch.ones(6), atol=1e-4, rtol=0)


def test_pictures_of_any_size_are_scored(samples: list[Sample], model: Dinov2Model):
    """Twice as large by whole pixels and shrunk again by the processor: nearly the same picture."""
    large = [replace(s, references=(references([s])[0].resize((64, 64), Image.Resampling.NEAREST),)) for s in samples]
    images = as_images(references(samples)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(DinoIdentity(MODEL, "reference", CPU)(images, large), torch.ones(6), atol=1e-5, rtol=0)
    cosines = torch.cosine_similarity(DinoFeatures(MODEL, CPU)(references(large)), by_hand(model, references(samples)))
    assert cosines.min() > 0.9


def test_scoring_leaves_no_gradient(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples]).requires_grad_()
    reward = DinoIdentity(MODEL, "reference", CPU)
    assert not reward(images.detach(), samples).requires_grad
    assert not reward.features.model.training
    assert not any(p.requires_grad for p in reward.features.model.parameters())


# --- copy-paste index ------------------------------------------------------------------------------------------------


def test_copy_paste_is_1_for_the_reference_and_minus_1_for_the_other_view(samples: list[Sample]):
    index = CopyPaste(MODEL, CPU)
    torch.testing.assert_close(index(as_images(references(samples)), samples), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(index(as_images(views(samples)), samples), -torch.ones(6), atol=1e-4, rtol=0)


def test_copy_paste_in_between_is_the_difference_of_angles(samples: list[Sample], model: Dinov2Model):
    """Angles by acos in float64: (view to image - reference to image) / (view to reference)."""
    made = [truth(sample) for sample in samples]
    image, reference, view = (by_hand(model, p).double().numpy() for p in (made, references(samples), views(samples)))

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        return math.acos(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    expected = [(angle(v, i) - angle(r, i)) / angle(v, r) for i, r, v in zip(image, reference, view, strict=True)]
    index = CopyPaste(MODEL, CPU)(as_images(made), samples)
    assert index.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(map(abs, expected)) < 1


def test_copy_paste_changes_sign_when_reference_and_view_change_places(samples: list[Sample]):
    images = as_images([truth(sample) for sample in samples])
    swapped = [replace(s, references=s.other_views, other_views=s.references) for s in samples]
    index = CopyPaste(MODEL, CPU)
    torch.testing.assert_close(index(images, swapped), -index(images, samples), atol=1e-4, rtol=0)


def test_copy_paste_against_the_same_picture_cannot_be_scored(samples: list[Sample]):
    twins = [replace(s, other_views=s.references) for s in samples]
    assert CopyPaste(MODEL, CPU)(as_images([truth(s) for s in samples]), twins).isnan().all()
