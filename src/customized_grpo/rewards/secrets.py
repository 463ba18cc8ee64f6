"""Types that keep passwords and keys out of a configuration: it is saved in config.yaml and quoted in messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator

# "api_key", "access-token", "sig", but not "max_tokens" or "monkey".
_SECRET = re.compile(r"(^|[-_])(api_?)?(key|token|secret|password|passwd|pwd|credentials?|sig|signature|auth)$", re.I)
_NOT_A_URL = "write a complete URL: http:// or https://, a host and perhaps a port, such as http://localhost:8000"


def _public_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:  # a port above 65535, an open bracket, a host name with an empty or very long label
        raise ValueError(_NOT_A_URL) from None
    if parts.scheme not in ("http", "https") or not host or port == 0 or not url.isprintable():
        raise ValueError(_NOT_A_URL)
    if "@" in parts.netloc:
        raise ValueError("a URL may not hold a user or password; put a key in a variable and name it in api_key_env")
    if parts.fragment or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("a URL may not hold a key; put the key in a variable and name the variable in api_key_env")
    return url


def _variable_name(name: str) -> str:
    """Refuse a key that was typed instead of a variable's name, without repeating it."""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("give the name of a variable, in capitals such as REWARD_KEY, not the key that it holds")
    return name


def _without_keys(options: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in _named(options):
        if _SECRET.search(name) and isinstance(value, str) and not name.endswith("_env"):
            raise ValueError(
                f"{name} would be saved in config.yaml; instead give the class {name}_env, the name of a variable"
            )
    return options


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of mappings, at any depth."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name), inner
            yield from _named(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(inner)


Url = Annotated[str, AfterValidator(_public_url)]
Variable = Annotated[str, AfterValidator(_variable_name)]
WithoutKeys = AfterValidator(_without_keys)  # of a mapping of options
