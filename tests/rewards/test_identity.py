"""Which pictures and which of their parts are compared."""

from dataclasses import replace

import pytest
import torch
from pictures import as_images, references, truth
from PIL import Image
from pydantic import ValidationError

from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.dino import DinoFeatures, DinoIdentity
from customized_grpo.rewards.regions import centre, subject

CPU = torch.device("cpu")
MODEL = FOLDER / "dino"
OVER = ("mean", "min", "best")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return draw_samples(6, TEST_CRITTERS, 0)


def test_several_references_count_by_their_mean_minimum_or_best(samples: list[Sample]):
    pictures = [sample.references[0] for sample in samples]
    several = replace(samples[0], references=tuple(pictures[:3]), other_views=tuple(pictures[3:]))
    image = as_images([truth(samples[1])])
    alone = [DinoIdentity(MODEL, device=CPU)(image, [replace(several, references=(p,))]).item() for p in pictures]
    for against, part in (("reference", alone[:3]), ("other_view", alone[3:])):
        score = {o: DinoIdentity(MODEL, device=CPU, against=against, over=o)(image, [several]) for o in OVER}
        assert score["mean"].item() == pytest.approx(sum(part) / 3, abs=1e-6)
        assert (score["min"].item(), score["best"].item()) == (min(part), max(part))


def test_the_centre_is_the_middle_square_of_both_pictures(samples: list[Sample]):
    """32 pixels: a side of 22 (0.7 x 32 = 22.4) that starts at 5; 64 x 32: the same side, starting at 21."""
    sample = samples[0]
    reference = references([sample])[0]
    assert centre(reference).tobytes() == reference.crop((5, 5, 27, 27)).tobytes()
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste(reference, (16, 0))
    assert centre(wide).tobytes() == centre(reference).tobytes()
    reward = DinoIdentity(MODEL, device=CPU, region="centre")
    edges = as_images([reference])
    edges[:, :, :4] = 0.9  # outside the middle
    assert reward(edges, [replace(sample, references=(wide,))]).item() == pytest.approx(1, abs=1e-5)
    assert DinoIdentity(MODEL, device=CPU)(edges, [sample]).item() < 0.999


def test_a_mask_cuts_out_the_first_reference_and_greys_the_rest(samples: list[Sample]):
    """The box is columns 8 to 23, rows 4 to 27; one of its corners is outside the mask."""
    reference, other = references(samples[:2])
    mask = Image.new("L", (32, 32), 127)  # just below the subject's grey value
    mask.paste(128, (8, 4, 24, 28))
    mask.paste(0, (8, 4, 12, 8))
    expected = reference.crop((8, 4, 24, 28))
    expected.paste((128, 128, 128), (0, 0, 4, 4))
    cut = subject(reference, mask)
    assert cut is not None
    assert cut.tobytes() == expected.tobytes()
    sample = replace(samples[0], references=(reference, other), mask=mask)
    reward = DinoIdentity(MODEL, device=CPU, region="mask")
    image = as_images([truth(samples[0])])
    features = DinoFeatures(MODEL, CPU)
    cosine = features([truth(samples[0])])[0] @ features([expected])[0]
    assert reward(image, [sample]).item() == pytest.approx(cosine.item(), abs=1e-5)


def test_a_missing_or_empty_mask_cannot_be_scored(samples: list[Sample]):
    black = Image.new("L", (32, 32))
    masked = [samples[0], replace(samples[1], mask=black), replace(samples[2], mask=Image.new("L", (32, 32), 255))]
    scores = DinoIdentity(MODEL, device=CPU, region="mask")(as_images(references(masked)), masked)
    assert scores.isnan().tolist() == [True, True, False]
    assert scores[2].item() == pytest.approx(1, abs=1e-5)


def test_mask_or_frame_is_the_mask_where_there_is_one_and_the_whole_reference_elsewhere(samples: list[Sample]):
    """The first reference alone, as the authors' release does."""
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 4, 24, 28))
    two = (*samples[0].references, *samples[3].references)
    mixed = [
        replace(samples[0], references=two, mask=mask),
        replace(samples[1], mask=None),
        replace(samples[2], mask=Image.new("L", (32, 32))),  # empty
        replace(samples[0], references=two, mask=None),
    ]
    images = as_images([truth(sample) for sample in mixed])
    scores = DinoIdentity(MODEL, device=CPU, region="mask_or_frame")(images, mixed)
    masked = DinoIdentity(MODEL, device=CPU, region="mask")(images, mixed)
    whole = DinoIdentity(MODEL, device=CPU)(images, samples[:3] + samples[:1])
    assert masked.isnan().tolist() == [False, True, True, True]
    torch.testing.assert_close(scores, torch.cat([masked[:1], whole[1:]]), atol=1e-5, rtol=0)
    assert (scores[0] - scores[3]).abs() > 0.01
    assert parse_reward("dino region=mask_or_frame").lacking(mixed[1]) is None


def test_a_mask_of_another_size_is_resized_and_one_of_other_proportions_refused(samples: list[Sample]):
    reference = references(samples)[0]
    small = Image.new("L", (16, 16))
    small.paste(255, (4, 2, 12, 14))
    large = Image.new("L", (32, 32))
    large.paste(255, (8, 4, 24, 28))
    cuts = [subject(reference, mask) for mask in (small, large)]
    assert cuts[0] == cuts[1]
    with pytest.raises(UsageError, match=r"^a mask of 16 x 32 does not fit its picture of 32 x 32"):
        subject(reference, small.resize((16, 32)))


@pytest.mark.parametrize("region", ["mask", "mask_or_frame"])
def test_a_mask_of_other_views_is_refused(region: str):
    with pytest.raises(ValidationError, match=f"region={region} needs against=reference"):
        parse_reward(f"dino region={region} against=other_view")


def test_an_encoder_may_use_another_device_than_the_run():
    reward = parse_reward("dino model=critters device=cpu").make(torch.device("meta"))
    assert isinstance(reward, DinoIdentity)
    assert reward.features.device == CPU
    assert {weight.device for weight in reward.features.model.parameters()} == {CPU}
