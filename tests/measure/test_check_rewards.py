"""Findings, for rewards built to fail in one way each, and for scores close to a threshold."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.calibration.known_pictures import ROWS, Cases
from customized_grpo.calibration.scored_pictures import Candidate, Judged, judge
from customized_grpo.critters import metrics as oracle
from customized_grpo.data import Sample
from customized_grpo.measure.check_rewards import Check
from customized_grpo.rewards.remote_settings import HttpSettings

NAN = math.nan


def noise(images: Tensor) -> Tensor:
    """[N] in [0, 1): pseudo-random, but the same for the same picture."""
    digits = (images * 255).round().double().flatten(1)
    return (digits @ torch.arange(1, digits.shape[1] + 1, dtype=torch.float64).sqrt()) % 1


def good_identity(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """The oracle plus noise, so that equally right pictures differ and nothing is saturated."""
    return oracle.oracle_identity(images, samples) + 0.5 * noise(images)


def good_prompt(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    return oracle.oracle_prompt(images, samples) + 0.5 * noise(images.flip(-1))


def fond_of_copies(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Recognises the subject, and adds one for the reference itself."""
    pictures = np.stack([np.asarray(sample.reference_images()[0]) for sample in samples])
    references = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    return good_identity(images, samples) + (images == references).flatten(1).all(dim=1)


def constant(images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG001
    return torch.full((len(images),), 0.5)


def of_the_sample_only(images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG001
    return torch.tensor([float(sample.extra["critter"] % 7) for sample in samples])


def at_random(images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """A number that depends on picture and prompt only."""
    letters = torch.tensor([float(sum(sample.prompt.encode())) for sample in samples])
    return noise(images + letters[:, None, None, None])


def nothing(images: Tensor, samples: Sequence[Sample]) -> Tensor:  # noqa: ARG001
    return torch.full((len(images),), NAN)


IDENTITY = Candidate("sprite", good_identity, "identity", "identity")
PROMPT = Candidate("words", good_prompt, "prompt", "prompt")


def check(cases: Cases, *candidates: Candidate) -> Check:
    return Check("test", cases, judge(cases, candidates, (32, 32), 16))


def given(cases: Cases, candidate: Candidate = IDENTITY, **rows: Tensor | float) -> Judged:
    """A reward with given scores; the other rows are unscored."""
    count = len(cases.samples)
    scores = {row: torch.full((count,), NAN, dtype=torch.float64) for row in ROWS}
    return Judged(candidate, cases, scores | {row: scores[row].new_ones(count) * each for row, each in rows.items()})


def findings(*judged: Judged) -> list[str]:
    """All findings but the one that counts unscored pictures, which `given` leaves out on purpose."""
    return [line for line in Check("test", judged[0].cases, judged).findings if "could not be scored" not in line]


# --- findings --------------------------------------------------------------------------------------------------------


def test_good_rewards_have_no_findings(critters: Cases):
    found = check(critters, IDENTITY, PROMPT)
    assert found.findings == found.notes == []
    assert found.text().endswith("\n\nNothing is wrong with these rewards.")


def test_a_constant_has_no_signal_and_no_other_finding(critters: Cases):
    (sentence,) = check(critters, IDENTITY, PROMPT, Candidate("flat", constant, "both", "prompt")).findings
    assert sentence == (
        "flat: all pictures of a case get the same score (0.50) in 100 % of 24 cases: such a group has no signal and "
        "is skipped; use another reward, or a finer scale"
    )


def test_a_reward_that_ignores_the_picture_has_no_signal(critters: Cases):
    (sentence,) = check(critters, Candidate("lucky", of_the_sample_only, "identity", "identity")).findings
    assert sentence.startswith("lucky: all pictures of a case get the same score (from 0.00 to 6.00) in 100 % of 24")


def test_more_than_half_the_groups_must_lack_signal(critters: Cases):
    """The lower end of the interval decides: 12 flat cases of 24 have .29, 20 have .67."""
    uneven = torch.ones(24, dtype=torch.float64)
    for flat, expected in ((12, 0), (20, 1)):
        view = uneven + (torch.arange(24) >= flat)
        judged = given(critters, replace(IDENTITY, measures="quality", key=None), copy=uneven, other_view=view)
        assert len(findings(judged)) == expected


def test_copying_pays(critters: Cases):
    """The finding repeats the means of the table."""
    candidate = Candidate("pixels", fond_of_copies, "identity", "identity")
    found = check(critters, candidate)
    copy, faithful = (found.judged[0].scores[row].mean().item() for row in ("copy", "right_prompt"))
    assert 1.9 < copy < 2.6
    assert 0.9 < faithful < 1.6
    assert found.findings == [
        f"pixels: copying the reference scores higher ({copy:.2f}) than another picture of the subject "
        f"({faithful:.2f}), in 100 % of 24 cases: copying will pay; compare with another view: "
        "rewards.identity.against=other_view"
    ]
    metric = check(critters, replace(candidate, key=None)).findings[0]
    assert metric.endswith('compare with another view: --metric "pixels against=other_view"')
    elsewhere = check(critters, replace(candidate, against="other_view")).findings[0]
    assert elsewhere.endswith(
        "copying will pay; watch it with copy_paste in evaluation.metrics, or choose another encoder"
    )
    copies = check(critters, Candidate("copies", fond_of_copies, "copying", "identity")).findings[0]
    assert copies.endswith("it measures copying; use rewards.identity.name=dino with against=other_view")
    assert (
        check(critters, Candidate("copies", fond_of_copies, "copying")).findings == []
    )  # a metric may measure copying


def test_copying_must_win_by_more_than_chance(critters: Cases):
    """24 of 24 pairs: yes. 18 of 24 is three quarters, but the interval reaches down to .58. Ties do not count."""
    honest = torch.arange(24, dtype=torch.float64) / 24
    for wins, expected in ((24, 1), (18, 0), (0, 0)):
        copy = honest + torch.where(torch.arange(24) < wins, 1.0, -1.0)
        assert len(findings(given(critters, copy=copy, right_prompt=honest, other_subject=-9))) == expected
    assert findings(given(critters, copy=honest, right_prompt=honest, other_subject=-9)) == []


def test_without_a_drawn_picture_another_view_is_the_honest_one(photographs: Callable[..., Cases]):
    """If the reward compares with the reference, any other view; if with the first view, only a second one."""
    cases = photographs(a=(None, 2), b=(None, 1), c=(None, 0))
    for against, pairs in (("reference", 4), ("other_view", 2)):
        judged = given(cases, replace(IDENTITY, against=against), copy=1, other_view=0, other_subject=-1)
        judged.scores["other_view"][4:] = NAN
        assert (~judged.honest.isnan()).sum() == pairs
        assert f"in 100 % of {pairs} cases: copying will pay" in findings(judged)[0]
        assert judged.same_subject.tolist() == [0.0] * pairs + [1.0] * (6 - pairs)
        notes = Check("test", cases, [judged]).notes
        assert ("sprite: 2 of 6 samples have only the other view that is compared with" in notes[-1]) == (pairs == 2)
    both = given(cases, replace(IDENTITY, measures="both"), copy=1, other_view=0)
    assert both.honest.isnan().all()  # every picture there fails the prompt


def test_noise_ranks_nothing(critters: Cases):
    found = check(
        critters, Candidate("dice", at_random, "identity", "identity"), Candidate("luck", at_random, "prompt")
    )
    dice, luck = found.judged
    subject = dice.pairs(dice.scores["right_prompt"], dice.scores["other_subject"])
    prompt = luck.pairs(luck.scores["right_prompt"], luck.scores["wrong_prompt"])
    assert subject
    assert prompt
    assert found.findings == [
        f"dice: cannot tell the subject from another one: {100 * subject.share.mean:.0f} % of 24 pairs are ranked "
        f"right, where chance is 50 % ({subject.first:.2f} against {subject.second:.2f}); try another reward: "
        "rewards.identity.name=...",
        f"luck: cannot tell the right prompt from a wrong one: {100 * prompt.share.mean:.0f} % of 24 pairs are ranked "
        f"right, where chance is 50 % ({prompt.first:.2f} against {prompt.second:.2f}); try another reward: "
        '--metric "..."',
    ]


@pytest.mark.parametrize(
    ("quality", "right", "wrong"),
    [
        ("identity", "right_prompt", "other_subject"),
        ("prompt", "right_prompt", "wrong_prompt"),
    ],
)
def test_ranking_must_fail_by_more_than_chance(quality: str, right: str, wrong: str, critters: Cases):
    """20 of 24 is .83, with an interval up to .96; 14 of 24 is .58, up to .79. The remedy names the encoder."""
    candidate = Candidate("eye", constant, quality, quality, encoder="dino", model="some/model")
    good = torch.linspace(0, 1, 24, dtype=torch.float64)
    for ranked, expected in ((24, 0), (20, 0), (14, 1)):
        bad = good + torch.where(torch.arange(24) < ranked, -1.0, 1.0)
        found = findings(given(critters, candidate, **{right: good, wrong: bad}))
        assert len(found) == expected
    assert found[0].endswith(f"try another encoder, rewards.{quality}.model=..., or another reward")


def test_a_trained_reward_is_saturated_if_all_right_pictures_get_the_maximum(critters: Cases):
    """The bare oracle: 1 for every right picture, which is fine for a metric."""
    trained = Candidate("yes", oracle.oracle_prompt, "prompt", "prompt")
    (sentence,) = check(critters, trained).findings
    assert sentence.startswith(
        "yes: saturated on good pictures: 1.00 with a spread of 0.00, on a scale from 0.00 to 1.00"
    )
    assert sentence.endswith("choose a finer reward: rewards.prompt.name=...")
    assert check(critters, replace(trained, key=None)).findings == []


def test_saturation_needs_both_a_small_spread_and_the_ceiling(critters: Cases):
    """On a scale of 1: 12 pictures at .98 + d and 12 at .98 - d spread by d sqrt(24/23); 2 % is allowed."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12)
    for level, d, expected in ((0.985, 0.01, 1), (0.985, 0.03, 0), (0.9, 0.01, 0)):
        judged = given(critters, PROMPT, right_prompt=level + d * sign, wrong_prompt=0, copy=torch.linspace(0, 1, 24))
        assert len(findings(judged)) == expected


def test_unscored_pictures_are_counted_by_row(critters: Cases):
    def picky(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        """NaN for three of the drawn pictures, with the right and with the wrong prompt."""
        scores = good_identity(images, samples)
        names = [sample.id.removesuffix("-wrong")[-2:] for sample in samples]
        truth = oracle.oracle_prompt(images, samples).bool() | torch.tensor(["wrong" in s.id for s in samples])
        return scores.where(~(truth & torch.tensor([name in ("00", "05", "11") for name in names])), NAN)

    (sentence,) = check(critters, replace(IDENTITY, reward=picky)).findings
    assert sentence == (
        "sprite: 6 of 120 pictures could not be scored (right prompt 3, wrong prompt 3): an image with NaN is "
        "dropped from its group; find out why, or leave this reward out"
    )
    server = HttpSettings(url="http://localhost:1/score", retries=0).make(torch.device("cpu"))
    (sentence,) = check(critters, Candidate("far", server, "quality")).findings
    assert sentence == (
        "far: 120 of 120 pictures could not be scored: http://localhost:1/score: no answer: [Errno 111] Connection "
        "refused"
    )
    found = check(critters, Candidate("blind", nothing, "both", "prompt"))
    assert found.findings[0].startswith("blind: 120 of 120 pictures could not be scored: an image with NaN")
    assert len(found.findings) == 1
    assert "no picture could be scored" in found.text()
    (sentence, *_) = check(critters, Candidate("twins", nothing, "copying")).findings
    assert sentence.endswith(
        "scored: it needs another view that differs from the reference; list some under other_views"
    )
    assert found.as_dict()["rewards"]["blind"]["ceiling"] is None


def test_a_missing_other_view_is_named_as_the_reason(photographs: Callable[..., Cases]):
    cases = photographs(a=("a", 1), b=("b", 0))

    def needs_view(images: Tensor, samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([0.0 if sample.other_views else NAN for sample in samples]) + noise(images)

    judged = judge(
        cases, [Candidate("dino against=other_view", needs_view, "identity", "identity", "other_view")], (8, 8), 9
    )
    assert Check("test", cases, judged).findings[0] == (
        "dino against=other_view: 8 of 18 pictures could not be scored (copy 2, other subject 2, right prompt 2, "
        "wrong prompt 2): 2 samples have no other view to compare with; list some under other_views, or "
        "set rewards.identity.against=reference"
    )


def test_trained_rewards_that_agree_or_conflict(critters: Cases):
    """Two patterns without correlation; r first + sqrt(1 - r^2) second has correlation r with the first."""
    first = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12)
    second = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat(6)
    calm = {"measures": "quality", "reward": constant}
    for r, sentence in ((0.96, "nearly the same thing twice"), (0.94, None), (-0.49, None), (-0.51, "pull against")):
        one = given(critters, replace(IDENTITY, key="quality", **calm), copy=first, other_view=second)
        # Correlation r over both rows together.
        mixed = {
            "copy": r * first + math.sqrt(1 - r * r) * second,
            "other_view": r * second - math.sqrt(1 - r * r) * first,
        }
        other = given(critters, replace(PROMPT, key="style", **calm), **mixed)
        found = findings(one, other)
        if sentence is None:
            assert found == []
        else:
            assert len(found) == 1
            assert found[0].startswith(f"sprite and words: correlation {r:.2f}: they ")
            assert sentence in found[0]
        metric = given(critters, replace(other.candidate, key=None), **mixed)
        assert findings(one, metric) == []


def test_built_in_encoders_are_reported_on_photographs(photographs: Callable[..., Cases], critters: Cases):
    built_in = Candidate("dino", good_identity, "quality", "identity", encoder="dino", model="critters")
    again = replace(built_in, label="dino against=other_view", key=None)
    listed = photographs(a=("a", 1), b=("b", 1))
    expected = (
        "dino, dino against=other_view: the built-in encoder has only seen critters; use one trained on "
        "photographs, for instance rewards.identity.model=facebook/dinov2-base"
    )
    assert findings(given(listed, built_in), given(listed, again))[0] == expected
    assert not any("built-in" in line for line in findings(given(critters, built_in)))
    assert not any("built-in" in line for line in findings(given(listed, replace(built_in, model="my/dino"))))


def test_commands_in_findings_can_be_copied(critters: Cases):
    """Lines are wrapped, but neither inside quoted commands nor inside "50 %"."""
    long = Candidate(
        "dino against=other_view", fond_of_copies, "identity", against="other_view", encoder="dino", model="m"
    )
    judged = given(critters, long, right_prompt=0.123, other_subject=torch.linspace(0, 1, 24), copy=-1)
    text = Check("test", critters, [judged]).text()
    assert '--metric "dino against=other_view model=..."' in text
    assert "\n %" not in text
    assert "\n  %" not in text
    assert "\N{NO-BREAK SPACE}" not in text
    assert max(map(len, text.splitlines())) <= 110
