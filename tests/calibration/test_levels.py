"""bad and good of rewards whose scores are known: values by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.algorithm import Calibration
from customized_grpo.calibration.joint import joint_quality
from customized_grpo.calibration.known_pictures import Cases, another
from customized_grpo.calibration.levels import Levels, base_levels, describe, known_levels, level, measured_rewards
from customized_grpo.calibration.scored_pictures import Candidate, judge
from customized_grpo.data import Sample
from customized_grpo.rewards.settings import ClipTSettings, DinoSettings

NAN = math.nan


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, value, value))


def red(images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG001 (it sees pictures only)
    """Scores a picture by its shade, from 0 to 255."""
    return (images[:, 0, 0, 0] * 255).round()


def loudness(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """The shade if the prompt is loud, its negative if it is not."""
    signs = torch.tensor([1.0 if sample.prompt.isupper() else -1.0 for sample in samples])
    return red(images, samples) * signs


def sample(number: int, subject: str, reference: int, *views: int, prompt: str = "A") -> Sample:
    pictures = tuple(map(shade, views))
    return Sample(str(number), subject, prompt, (shade(reference),), pictures)


def of(cases: Cases, reward: Callable[..., Tensor], quality: str, against: str = "reference") -> Levels:
    candidate = Candidate("mine", reward, quality, quality, against)
    return known_levels(judge(cases, [candidate], (8, 8), 64)[0])


# --- the mean of some scores -----------------------------------------------------------------------------------------


def test_a_level_has_its_mean_interval_and_number_of_pictures():
    found = level(torch.tensor([1.0, 3.0, NAN, 5.0]), ["a", "b", "b", "c"], "such")
    assert found is not None
    assert (found.mean, found.pictures, found.what) == (3, 3, "such")
    assert found.interval is not None
    assert 1 <= found.interval[0] < 3 < found.interval[1] <= 5
    assert level(torch.tensor([NAN, NAN]), ["a", "b"], "such") is None


def test_the_interval_is_over_subjects():
    """A hundred pictures of two subjects are two independent values: every third resample or so has one of them."""
    values = torch.tensor([0.0] * 50 + [1.0] * 50)
    of_subjects = level(values, ["a"] * 50 + ["b"] * 50, "")
    of_pictures = level(values, [str(n) for n in range(100)], "")
    assert of_subjects is not None
    assert of_pictures is not None
    assert of_subjects.interval == (0, 1)
    assert of_pictures.interval is not None
    assert 0.3 < of_pictures.interval[0] < of_pictures.interval[1] < 0.7


def test_numbers_are_rounded_to_what_the_file_holds():
    found = level(torch.tensor([1 / 3], dtype=torch.float64), ["a"], "")
    assert found is not None
    assert (found.mean, found.interval) == (0.333333, (0.333333, 0.333333))


# --- pictures of the data --------------------------------------------------------------------------------------------


def test_identity_is_measured_on_strangers_and_on_another_view():
    """References 10, 20, 30; last views 4, 5, 6. Their strangers are b, a, a: 20, 10, 10."""
    cases = Cases([sample(n, "abc"[n], 10 * (n + 1), 1 + n, 4 + n) for n in range(3)])
    assert another(cases.subjects) == [1, 0, 0]
    found = of(cases, red, "identity")
    assert found.bad
    assert found.good
    assert found.bad.mean == pytest.approx((20 + 10 + 10) / 3, abs=1e-4)
    assert (found.bad.pictures, found.bad.what) == (3, "other subjects")
    assert (found.good.mean, found.good.pictures, found.good.what) == (5, 3, "other views")
    assert found.complete


def test_a_view_is_compared_with_the_other_views_and_not_with_itself():
    """The views that the reward sees with the last view, of three, are the first two."""
    seen = []

    def watching(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        seen.extend(len(each.other_views) for each in samples)
        return red(images, samples)

    cases = Cases([sample(n, "ab"[n], 10, 1, 2, 3) for n in range(2)])
    judge(cases, [Candidate("mine", watching, "identity", "identity")], (8, 8), 64, ["other_view", "copy"])
    assert sorted(seen) == [2, 2, 3, 3]
    found = of(cases, red, "identity", "other_view").good
    assert found
    assert (found.mean, found.what) == (3, "other views")


def test_against_a_single_other_view_the_reference_is_the_other_view():
    cases = Cases([sample(n, "ab"[n], 10, 1) for n in range(2)])
    found = of(cases, red, "identity", "other_view").good
    assert found
    assert (found.mean, found.what) == (10, "references")


def test_what_the_data_does_not_have_is_not_measured():
    one_subject = of(Cases([sample(n, "a", 10, 1) for n in range(3)]), red, "identity")
    assert one_subject.bad is None
    assert one_subject.good
    no_views = of(Cases([sample(n, "ab"[n], 10) for n in range(2)]), red, "identity")
    assert no_views.good is None
    assert no_views.bad
    assert of(Cases([sample(n, "ab"[n], 10, 1, prompt=str(n)) for n in range(2)]), red, "prompt") == Levels()


def test_a_class_word_is_no_prompt_of_the_data():
    """check-rewards compares "a photo of a dog" with "a photo of a cup"; that is easier than the sample's prompts."""
    words = [replace(sample(n, "ab"[n], 10, prompt="Aa"[n]), class_word=("dog", "cup")[n]) for n in range(2)]
    cases = Cases(words)
    assert cases.shown("wrong_prompt") == 2
    assert of(cases, loudness, "prompt") == Levels()


def test_the_prompt_is_measured_on_the_real_picture_with_the_right_and_with_a_wrong_prompt():
    """Pictures 100 and 200 of two prompts, LOUD and quiet; the third has no picture of its prompt.

    LOUD with its own 100, quiet with its own -200: mean -50. LOUD under "quiet" -100, quiet under "LOUD" 200: 50.
    """
    prompts = ("LOUD", "quiet", "LOUD")
    samples = [sample(n, "abc"[n], 10, prompt=prompts[n]) for n in range(3)]
    samples[:2] = [replace(each, prompt_picture=shade(100 * (n + 1))) for n, each in enumerate(samples[:2])]
    cases = Cases(samples)
    assert cases.prompt_known
    found = of(cases, loudness, "prompt")
    assert found.bad
    assert found.good
    assert (found.good.mean, found.good.pictures, found.good.what) == (-50, 2, "right prompts")
    assert (found.bad.mean, found.bad.pictures, found.bad.what) == (50, 2, "wrong prompts")
    assert [shown is None for shown in cases.rows["right_prompt"]] == [False, False, True]
    assert "the picture that the prompt was written for" in cases.legend().values()


def test_bad_and_good_of_the_prompt_are_the_same_pictures():
    """A reward that cannot score one of the two scores neither."""

    def partly(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        unscored = torch.tensor([each.id.endswith("0-wrong") for each in samples])
        return red(images, samples).masked_fill(unscored, NAN)

    samples = [replace(sample(n, "ab"[n], 1, prompt="pq"[n]), prompt_picture=shade(10 + 10 * n)) for n in range(2)]
    found = of(Cases(samples), partly, "prompt")
    assert found.good
    assert found.bad
    assert (found.good.mean, found.good.pictures) == (found.bad.mean, found.bad.pictures) == (20, 1)


# --- the base's own groups -------------------------------------------------------------------------------------------

OWN = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [10.0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]])
WRONG = OWN - 100


def test_good_is_the_upper_decile_of_each_group_and_bad_the_wrong_prompt():
    """Deciles of 0 .. 10: 9 and 1; of 10 .. 20: 19 and 11. Their means: 14 and 6. Mean with a wrong prompt: -90."""
    found = base_levels("prompt", OWN, WRONG, ["a", "b"])
    assert found.good
    assert found.bad
    assert (found.good.mean, found.good.pictures, found.good.what) == (14, 22, "upper decile of the base's groups")
    assert found.good.interval == (9, 19)
    assert (found.bad.mean, found.bad.pictures, found.bad.what) == (-90, 22, "the base's pictures with wrong prompts")


@pytest.mark.parametrize(("quality", "wrong"), [("identity", WRONG), ("prompt", torch.full_like(OWN, NAN))])
def test_bad_is_the_lower_decile_of_identity_and_where_there_is_one_prompt(quality: str, wrong: Tensor):
    found = base_levels(quality, OWN, wrong, ["a", "b"])
    assert found.bad
    assert (found.bad.mean, found.bad.pictures, found.bad.what) == (6, 22, "lower decile of the base's groups")


def test_unscored_images_and_groups_are_left_out():
    """Of 0 .. 10 without 10 (deciles .9 and 8.1), and a group without any score."""
    own = OWN.clone()
    own[0, -1], own[1] = NAN, NAN
    found = base_levels("identity", own, own, ["a", "b"])
    assert found.bad
    assert found.good
    assert (found.bad.mean, found.good.mean) == (pytest.approx(0.9), pytest.approx(8.1))
    assert found.good.pictures == 10
    assert base_levels("identity", own[1:], own[1:], ["b"]) == Levels()


def test_what_the_data_tells_comes_before_the_base():
    known, base = base_levels("prompt", OWN, WRONG, ["a", "b"]), base_levels("prompt", OWN + 1, WRONG, ["a", "b"])
    assert Levels(bad=known.bad).or_else(base) == Levels(known.bad, base.good)
    assert known.or_else(base) == known


# --- the file and the line -------------------------------------------------------------------------------------------


def test_only_rewards_with_both_levels_are_for_the_file():
    levels = base_levels("identity", OWN, WRONG, ["a", "b"])
    settings = {"identity": DinoSettings(role="identity"), "prompt": ClipTSettings(role="prompt", batch=3)}
    known = measured_rewards({"identity": Levels(levels.bad), "prompt": levels}, settings)
    assert list(known) == ["prompt"]
    assert (known["prompt"].reward, known["prompt"].capped) == ("clip_t batch=3", False)
    assert measured_rewards({"identity": levels}, settings)["identity"].capped


def test_the_line_says_what_was_found():
    levels = base_levels("identity", OWN, WRONG, ["a", "b"])
    assert describe("identity", levels) == (
        "calibration of rewards.identity: bad 6 [1, 11] (lower decile of the base's groups, 22 pictures); good 14 "
        "[9, 19] (upper decile of the base's groups, 22 pictures)"
    )
    assert describe("fine", Levels()) == "calibration of rewards.fine: nothing could be scored"


# --- joint quality ---------------------------------------------------------------------------------------------------


def test_joint_quality_by_hand():
    """Identity of bad 0, good .8, capped; two prompt rewards of bad 1, good 3 and bad 0, good 1, whose mean counts.

    identity .4: q .5; .8: 1; .9: 1 (capped); -1: 0.
    prompts (2, .5): (.5 + .5) / 2; (5, 1): (2 + 1) / 2 = 1.5, not capped; (0, .5): (0 + .5) / 2 = .25.
    """
    roles = {"identity": "identity", "prompt": "prompt", "other": "prompt", "taste": "quality"}
    calibrations = {
        "identity": Calibration(0, 0.8, capped=True),
        "prompt": Calibration(1, 3),
        "other": Calibration(0, 1),
    }
    scores = {
        "identity": torch.tensor([0.4, 0.8, 0.9, -1, 0.8]),
        "prompt": torch.tensor([2.0, 5, 0, 5, NAN]),
        "other": torch.tensor([0.5, 1, 0.5, 1, 1]),
        "taste": torch.full((5,), NAN),
    }
    expected = torch.tensor([0.25, 1.5, 0.25, 0, NAN], dtype=torch.float64)
    torch.testing.assert_close(joint_quality(scores, roles, calibrations), expected, equal_nan=True)
