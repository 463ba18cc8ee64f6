"""A configuration as others may see it: without the folders of the user's machine and the names of their servers.

Keys and passwords are never in a configuration: rewards/secrets.py refuses them.
"""

from __future__ import annotations

import re
from pathlib import PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from customized_grpo.config import RunConfig

WORDS = ("class_word",)  # settings that are no paths, whatever they look like
HIDDEN_HOST = "server.invalid"  # of the domain that RFC 2606 keeps free for this
_FOLDERS = re.compile(r"[/\\]|~|[A-Za-z]:[/\\]|\.\.?[/\\]")  # how a path begins that is not just a name
_IN_TEXT = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:\\|/|~/)[^\s,;'\"]*[^\s,;'\".]")  # a path in the middle of a text


def public_config(config: RunConfig) -> RunConfig:
    """The configuration in which paths outside the working folder are their last names, and servers unnamed."""
    return RunConfig.model_validate(public(config.model_dump(mode="json")))


def public_name(path: str) -> str:
    """A path, hub id or name without the folders that it begins with, if it begins at a root, `~` or a dot."""
    return PureWindowsPath(path).name or "data" if _FOLDERS.match(path) else path


def public(value: Any) -> Any:
    """A setting, or a mapping or list of settings, as others may see it."""
    if isinstance(value, dict):
        return {key: entry if key in WORDS else public(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [public(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        parts = urlsplit(value)
        return parts._replace(netloc=HIDDEN_HOST).geturl()
    return _IN_TEXT.sub(lambda found: public_name(found[0]), public_name(value))
