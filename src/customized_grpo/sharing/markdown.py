"""Texts of users inside Markdown: a prompt, a class word or a file's name is shown as it is, and does nothing.

Any ASCII punctuation may follow a backslash in CommonMark (0.31, section 2.4). A user's own backslash becomes an
entity, because two of them begin a formula on the Hub.
"""

from __future__ import annotations

import re

_MEANT = re.compile(r"""[!-+./:;=?@\[\]^_`{|}~]""")  # ASCII punctuation but comma, hyphen, backslash, < and >
_ENTITIES = {"\\": "&#92;", "<": "&lt;", ">": "&gt;", "&": "&amp;"}


def on_one_line(text: str) -> str:
    """White space, line ends among it, as single spaces; other control characters as their escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def plain(text: str) -> str:
    """A text for a paragraph or a cell of a table, on one line."""
    with_entities = (_ENTITIES.get(c, c) for c in on_one_line(text))
    return "".join(c if len(c) > 1 else _MEANT.sub(r"\\\g<0>", c) for c in with_entities)


def code(text: str, *, cell: bool = False) -> str:
    """A text in the letters of a program, on one line.

    cell  of a table, which is divided at each | before code is read
    """
    line = on_one_line(text)
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if line[:1] in ("`", "") or line[-1:] == "`" else ""
    written = f"{fence}{space}{line}{space}{fence}"
    return written.replace("|", r"\|") if cell else written
