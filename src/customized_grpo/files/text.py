"""Characters that no later step can handle."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: a path from the system need not be."""
    return _SURROGATE.search(text) is None


def flaw_of(text: str) -> str | None:
    """What a text holds that tokenizers and files refuse, with the way out; None if there is nothing.

    A lone surrogate is half a character (a caption that was cut), or a byte of an argument that is not UTF-8, for
    which Python puts U+DC80 to U+DCFF.
    """
    if lone := _SURROGATE.search(text):
        or_byte = " or a byte that is not UTF-8" if "\udc80" <= lone[0] <= "\udcff" else ""
        return f"has a lone surrogate (\\u{ord(lone[0]):04x}), half a character{or_byte}; remove it"
    return "has a NUL character (\\u0000); remove it" if "\0" in text else None
