"""A part of a list shows what the whole list shows: subjects, prompts, references."""

from collections import Counter
from pathlib import Path

import pytest

from customized_grpo.data.sample import Sample
from customized_grpo.data.subsets import fair_order, subset

SUBJECTS = [f"toy{number:02d}" for number in range(12)]
PROMPTS = ["in snow", "on a beach", "at night", "in a box", "from above"]


def sample(subject: str, prompt: str, reference: str = "0.png", class_word: str | None = None) -> Sample:
    name = f"{subject}/{prompt}/{reference}"
    return Sample(id=name, subject=subject, prompt=prompt, references=(Path(reference),), class_word=class_word)


BY_SUBJECT = [sample(subject, prompt) for subject in SUBJECTS for prompt in PROMPTS]
BY_PROMPT = [sample(subject, prompt) for prompt in PROMPTS for subject in SUBJECTS]


@pytest.mark.parametrize("listed", [BY_SUBJECT, BY_PROMPT], ids=["by subject", "by prompt"])
@pytest.mark.parametrize("count", [5, 11, 12, 24, 40, 59])
def test_subjects_and_prompts_come_equally_often(listed: list[Sample], count: int):
    """Counts that divide the length of the list, and counts that do not; 2 for the last turn of the subjects."""
    chosen = subset(listed, count)
    assert len({each.id for each in chosen}) == count
    for values, field, most in ((SUBJECTS, "subject", 1), (PROMPTS, "prompt", 2)):
        times = [Counter(getattr(each, field) for each in chosen)[value] for value in values]
        assert max(times) - min(times) <= most, (field, times)


def test_a_prompt_is_one_prompt_whatever_the_class_word():
    words = {"rex": "dog", "tom": "cat", "canny": "can"}
    listed = [
        sample(name, f"a {word} {where}", class_word=word)
        for name, word in words.items()
        for where in ("in the canyon", "at night", "on a rock")
    ]
    assert len({each.prompt.split(" ", 2)[2] for each in subset(listed, 3)}) == 3


def test_the_photographs_of_one_subject_come_equally_often():
    listed = [sample("rex", prompt, f"{photo}.jpg") for prompt in PROMPTS for photo in range(3)]
    chosen = subset(listed, 6)
    assert sorted(Counter(str(each.references[0]) for each in chosen).values()) == [2, 2, 2]
    assert sorted(Counter(each.prompt for each in chosen).values()) == [1, 1, 1, 1, 2]


def test_unequal_subjects_are_all_there_and_none_is_lost():
    listed = [sample("many", f"prompt {number}") for number in range(50)] + [sample("few", "a prompt")]
    assert {each.subject for each in subset(listed, 2)} == {"many", "few"}
    assert sorted(each.id for each in fair_order(listed)) == sorted(each.id for each in listed)


def test_the_choice_depends_on_nothing_but_the_samples():
    """The order of the list does not matter, and fewer samples are the first of more."""
    assert subset(BY_SUBJECT, 20) == subset(BY_PROMPT, 20) == fair_order(BY_SUBJECT)[:20]
    assert subset(BY_SUBJECT, 7) == subset(BY_SUBJECT, 20)[:7]


@pytest.mark.parametrize("count", [None, 60, 100])
def test_a_whole_list_keeps_its_order(count: int | None):
    assert subset(BY_SUBJECT, count) == BY_SUBJECT
