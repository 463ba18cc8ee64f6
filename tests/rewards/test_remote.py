from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from customized_grpo.rewards.remote import retry_after, shown


def test_a_wait_is_read_as_seconds_or_as_a_date():
    later = datetime.now(UTC) + timedelta(seconds=20)
    assert retry_after("3") == 3
    assert retry_after(format_datetime(later, usegmt=True)) == pytest.approx(20, abs=2)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(text) for text in ("", "soon", "-3", "²", "Wed, 99 Foo")] == [0] * 5


def test_a_url_is_shown_without_what_may_be_secret():
    assert shown("https://me:word@host:81/score?token=abc#x") == "https://host:81/score"
