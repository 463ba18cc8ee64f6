"""docs/configuration.md has every setting with its meaning, and is what the generator writes."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from configuration_page import PAGE, as_markdown, as_yaml, description, page, section_of, type_of
from customized_grpo.config import RunConfig
from customized_grpo.fields import Count, NonNegative, Positive, Seed, Share
from customized_grpo.rewards.by_name import REWARDS
from customized_grpo.rewards.settings import OwnFunctionSettings

SECTIONS = [section for info in RunConfig.model_fields.values() if (section := section_of(info))]
SETTINGS = [
    (section, key)
    for section in dict.fromkeys([RunConfig, *SECTIONS, *REWARDS.values(), OwnFunctionSettings])
    for key, info in section.model_fields.items()
    if section_of(info) is None
]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/configuration_page.py --write"


@pytest.mark.parametrize(("section", "key"), SETTINGS, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_has_a_description(section: type[BaseModel], key: str):
    text = description(section, key)
    assert text, f"{section.__name__}.{key}: add a docstring under the field"
    assert text[0] in "`" or text[0].isupper() or text[0].isdigit(), text
    assert text.endswith("."), text


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_a_docstring(section: type[BaseModel]):
    assert section.__doc__


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Count, "integer, 1 to 1,000,000"),
        (Count | None, "integer, 1 to 1,000,000, or `null`"),
        (Seed, "integer, 0 to 2^63 - 1"),
        (Share, "number, 0 to 1"),
        (Positive | Literal["checkpoint"], "number above 0 or `checkpoint`"),
        (NonNegative, "number, 0 or more"),
        (Annotated[float, Field(ge=0, le=1e12)], "number, 0 or more"),
        (Annotated[float, Field(ge=0.001, le=100)], "number, 0.001 to 100"),
        (Literal["a", "b"], "one of `a`, `b`"),
        (tuple[Literal["a", "b"], ...], "list of `a`, `b`"),
        (tuple[str, ...] | None, "list of text or `null`"),
        (Annotated[str, "anything"], "text"),
        (bool, "`true` or `false`"),
    ],
)
def test_types_are_in_plain_words(kind: Any, words: str):
    assert type_of(create_model("Section", field=(kind, ...)).model_fields["field"]) == words


@pytest.mark.parametrize(("value", "text"), [(None, "`null`"), ((), "`[]`"), (1e-4, "`0.0001`"), (True, "`true`")])
def test_defaults_are_yaml(value: object, text: str):
    assert as_yaml(value) == text


def test_descriptions_become_markdown():
    text = 'Word such as "dog"; null means none, `null` too. See docs/data.md.'
    assert as_markdown(text) == "Word such as `dog`; `null` means none, `null` too. See [docs/data.md](data.md)."
