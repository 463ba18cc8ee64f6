"""Proxies that the environment names: never used for this machine, and named when a server cannot be reached."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

_THIS_MACHINE = ("localhost", "localhost.localdomain", "ip6-localhost")


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is a loopback address, or 0.0.0.0, which servers print as their own."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host in _THIS_MACHINE or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # short forms such as 127.1
        except (OSError, UnicodeError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def describe_proxy(url: str) -> str:
    """The proxy for a URL without user and password, the variable that names it, and the way around it."""
    parts = urlsplit(url)
    kinds = (parts.scheme, "all")
    names = [name for kind in kinds for name in (f"{kind}_proxy", f"{kind}_proxy".upper()) if os.environ.get(name)]
    proxies = getproxies()
    value = next((proxies[kind] for kind in kinds if proxies.get(kind)), "")
    source = names[0] if names else "the system's settings"
    return f"through the proxy {without_secrets(value)} of {source}, which NO_PROXY={parts.hostname} would avoid"


def without_secrets(url: str) -> str:
    """A URL for messages, without user, password and query: any of them may hold a secret."""
    scheme, separator, rest = url.rpartition("://")
    netloc, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}{separator}{netloc.rpartition('@')[2]}{slash}{path}"
