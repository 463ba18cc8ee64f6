from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from customized_grpo.calibration.known_pictures import ROWS, Cases, another, load_cases
from customized_grpo.calibration.scored_pictures import Candidate, judge
from customized_grpo.critters import metrics as oracle
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS, draw_samples
from customized_grpo.sections import Data


def test_another_takes_turns_over_all_other_keys():
    """a, b, c start at 0, 2, 3; and advance by 1 + (0, 1, 0, 1) names: a to b, a to c, b to c, c to b."""
    assert another(["a", "a", "b", "c"]) == [2, 3, 3, 2]
    assert another(["a", "a"]) == [None, None]
    assert another(["", "a", ""]) == [None, None, None]
    assert another(["", "a", "b"]) == [None, 2, 1]
    keys = [f"{subject}" for subject in range(30) for _ in range(25)]
    chosen = another(keys)
    for start in range(0, 750, 25):
        others = [keys[index] for index in chosen[start : start + 25] if index is not None]
        assert keys[start] not in others
        assert len({*others}) == 25


def test_rows_of_critters_hold_the_right_pictures(critters: Cases):
    rewards = [Candidate("", oracle.oracle_identity, "identity"), Candidate("", oracle.oracle_prompt, "prompt")]
    identity, prompt = (judged.table.mean(dim=0).tolist() for judged in judge(critters, rewards, (32, 32), 16))
    assert ROWS == ("copy", "other_view", "other_subject", "right_prompt", "wrong_prompt")
    assert identity == [1, 1, 0, 1, 1]
    assert prompt == [0, 0, pytest.approx(1 / 24), 1, 0]  # one stranger happens to stand as the prompt asks
    for sample, copied, other, right, wrong in zip(
        critters.samples,
        *(critters.rows[row] for row in ("copy", "other_subject", "right_prompt", "wrong_prompt")),
        strict=True,
    ):
        assert copied
        assert other
        assert right
        assert wrong
        assert copied.picture is sample.references[0]
        assert copied.sample is other.sample is right.sample is sample
        assert other.picture not in sample.references
        assert wrong.picture == right.picture
        assert wrong.sample.prompt != sample.prompt
        assert wrong.sample.prompt in {each.prompt for each in critters.samples}
        assert wrong.sample.id not in {each.id for each in critters.samples}


def test_the_development_critters_of_training_are_shown():
    loaded = load_cases(Data(train_samples=5), 7)
    assert [s.id for s in loaded.samples] == [s.id for s in draw_samples(7, DEVELOPMENT_CRITTERS, 0)]
    assert loaded.truth_known


def test_rows_of_photographs_hold_the_right_pictures(photographs: Callable[..., Cases]):
    cases = photographs(dog1=("dog", 2), dog2=(" Dog", 1), cup=("cup", 0), thing=(None, 0))
    shown = {row: [each and Path(str(each.picture)) for each in pictures] for row, pictures in cases.rows.items()}
    prompts = {row: [each and each.sample.prompt for each in pictures] for row, pictures in cases.rows.items()}

    def short(paths: Sequence[Path | None]) -> list[str | None]:
        return [None if path is None else f"{path.parent.name}/{path.stem}" for path in paths[::2]]

    assert short(shown["copy"]) == ["dog1/0", "dog2/0", "cup/0", "thing/0"]
    assert short(shown["other_view"]) == ["dog1/2", "dog2/1", None, None]  # the last: identity compares with the first
    assert all(
        other and own and other and other.parent != own.parent
        for own, other in zip(shown["copy"], shown["other_subject"], strict=True)
    )
    assert prompts["copy"] == [sample.prompt for sample in cases.samples]
    assert short(shown["right_prompt"]) == short(shown["wrong_prompt"]) == ["dog1/0", "dog2/0", "cup/0", None]
    assert prompts["right_prompt"][::2] == ["a photo of a dog", "a photo of a dog", "a photo of a cup", None]
    assert prompts["wrong_prompt"][::2] == ["a photo of a cup", "a photo of a cup", "a photo of a dog", None]
    assert cases.third_view.tolist() == [True, True] + [False] * 6
    assert list(cases.gaps()) == [
        "4 of 8 samples have no other view: whether copying pays is not checked for them; list more pictures of the "
        "subject under other_views",
        "2 of 8 samples have no class_word: right and wrong prompts are not checked for them; add it to the list, for "
        'instance "class_word": "dog"',
    ]


def test_one_subject_and_one_class_word_leave_gaps(photographs: Callable[..., Cases]):
    cases = photographs(dog=("dog", 1))
    assert cases.rows["other_subject"] == cases.rows["wrong_prompt"] == [None, None]
    assert cases.shown("right_prompt") == 2
    assert list(cases.gaps()) == [
        "all samples show one subject (dog): whether rewards recognise it is not checked",
        "all class words are 'dog': there is no wrong prompt to check with",
    ]


def test_cases_are_spread_over_a_list(photographs: Callable[..., Cases], tmp_path: Path):
    photographs(a=(None, 0), b=(None, 0), c=(None, 0), d=(None, 0), e=(None, 0))
    source = Data(source=str(tmp_path / "list.json"))
    assert sorted(load_cases(source, 5).subjects) == list("abcde")
    assert len(set(load_cases(source, 2).subjects)) == 2
    assert len(load_cases(source, 1000).samples) == 10
