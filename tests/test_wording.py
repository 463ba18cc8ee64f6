"""Counts in messages."""

import pytest

from customized_grpo.wording import counted


@pytest.mark.parametrize(("count", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_a_count_has_its_noun_in_the_right_number(count: int, words: str):
    assert counted(count, "image") == words
