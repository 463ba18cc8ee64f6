"""Texts of users are shown as they are by a CommonMark parser, and start nothing."""

import pytest
from markdown_it import MarkdownIt

from customized_grpo.sharing.markdown import code, on_one_line, plain
from customized_grpo.sharing.public import public_name

NASTY = [
    *("*bold* _it_ ~~no~~ `code`", "[a](http://x) ![b](y) <b>c</b> &lt;", "# x", "- x", "1. x", "| a | b |", "---"),
    *(
        "a\\",
        r"\(x\) \\(y\\) $$z$$",
        "a\n\n# b",
        "a\n---\nb: c",
        "<script>alert(1)</script>",
        "www.x.org @ann",
        "``` x",
    ),
    *("`", "``a`", "{{ x }} {% y %}", "naïve 犬 🐕", "tab\tand\x00nul\x1b[31m", "a\u2028b\u202ec", "> q", "~~~"),
]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("frame", ["before {} after", "| x | y |\n| --- | --- |\n| {} | z |", "{}"])
def test_a_text_is_shown_as_it_is(text: str, frame: str):
    """`code` stands inside a line or a cell; `plain` also at the beginning of a paragraph, except for list marks."""
    for escape, kinds in ((plain, {"text", "text_special"}), (code, {"text", "text_special", "code_inline"})):
        if frame == "{}" and (escape is code or text.startswith(("- ", "--"))):
            continue
        written = code(text, cell=True) if escape is code and "---" in frame else escape(text)
        tokens = [part for token in PARSER.parse(frame.format(written)) for part in token.children or ()]
        assert {token.type for token in tokens} <= kinds
        shown = "".join(token.content for token in tokens)
        assert on_one_line(text) in shown


def test_nothing_is_an_address_of_the_hub():
    """GitHub's extension, which the Hub has, makes links of bare addresses."""
    assert "www.x" not in plain("see www.x.org")
    assert "http:" not in plain("http://x")
    assert "@ann" not in plain("hello @ann").replace("\\@ann", "")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/ann/rex", "rex"),
        ("~/pictures/rex.json", "rex.json"),
        ("../ann/rex", "rex"),
        ("./rex", "rex"),
        (r"C:\Users\ann\rex", "rex"),
        ("/", "data"),
        ("photos/rex", "photos/rex"),
        ("Qwen/Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2511"),
        ("critters", "critters"),
    ],
)
def test_a_name_without_the_users_folders(path: str, name: str):
    assert public_name(path) == name
