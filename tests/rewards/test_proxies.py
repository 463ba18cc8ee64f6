"""Servers and the proxies that the environment names."""

import os
from collections.abc import Callable

import pytest
from loopback import Loopback
from remote_rewards import GREY, REMOTES, SAMPLES, SCORES, Remote

from customized_grpo.errors import UsageError
from customized_grpo.rewards.proxies import is_this_machine, without_secrets

Serve = Callable[..., Loopback]
DEAD = "127.0.0.1:9"  # nothing listens there
FAR = "http://far.example"


@pytest.fixture(params=REMOTES)
def remote(request: pytest.FixtureRequest) -> Remote:
    return REMOTES[request.param]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "proxy",
    [
        ("http_proxy", DEAD),
        ("HTTP_PROXY", f"http://{DEAD}"),
        ("all_proxy", f"socks5://{DEAD}"),
        ("ALL_PROXY", "ftp://x"),
    ],
)
def test_a_server_on_this_machine_is_asked_directly(
    remote: Remote, host: str, proxy: tuple[str, str], serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(*proxy)
    reward = remote.make(f"http://{host}:{serve(remote.by_grey).port}")
    assert reward(GREY, SAMPLES).tolist() == SCORES


@pytest.mark.parametrize(
    ("url", "here"),
    [
        *((f"http://{host}/", True) for host in ("localhost.", "LocalHost:80", "a.localhost", "127.9.9.9", "127.1")),
        *((f"https://{host}/v1", True) for host in ("[::1]", "[::]", "[::ffff:127.0.0.1]:8000")),
        *(
            (f"http://{host}", False)
            for host in ("localhost.example", "128.0.0.1", "[2001:db8::1]", "10.0.0.1", "host")
        ),
    ],
)
def test_which_addresses_are_this_machine(url: str, here: bool):
    assert is_this_machine(url) is here


def test_other_servers_are_asked_through_the_proxy(remote: Remote, serve: Serve, monkeypatch: pytest.MonkeyPatch):
    proxy = serve(remote.by_grey)
    monkeypatch.setenv("http_proxy", proxy.url)
    assert remote.make(FAR)(GREY, SAMPLES).tolist() == SCORES
    assert proxy.requests[0][0].startswith(f"{FAR}{remote.path}")


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("http_proxy", DEAD, DEAD),
        ("HTTP_PROXY", f"http://{DEAD}/", f"http://{DEAD}/"),
        ("ALL_PROXY", f"me:word@{DEAD}", DEAD),
        ("https_proxy", f"http://me:word@{DEAD}", f"http://{DEAD}"),
    ],
)
def test_a_failure_names_the_proxy_and_its_variable_without_its_password(
    remote: Remote, variable: str, value: str, shown: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, value)
    server = "https://far.example" if variable == "https_proxy" else FAR
    reward = remote.make(server, retries=0)
    assert reward(GREY[:1], SAMPLES[:1]).isnan().all()
    through = f"through the proxy {shown} of {variable}, which NO_PROXY=far.example would avoid"
    assert reward.last_error.startswith(f"{server}{remote.path} ({through}): no answer: ")
    assert "word" not in reward.last_error


@pytest.mark.parametrize("around", ["far.example", ".example", "*", "other, far.example"])
def test_a_server_that_no_proxy_lists_is_asked_directly(remote: Remote, around: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", DEAD)
    monkeypatch.setenv("no_proxy", around)
    reward = remote.make(FAR, retries=0)
    reward(GREY[:1], SAMPLES[:1])
    assert "proxy" not in reward.last_error


@pytest.mark.parametrize("value", ["ftp://me:word@proxy", "http://me:word@proxy:port"])
def test_a_proxy_that_cannot_be_used_is_reported_without_its_password(
    remote: Remote, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(UsageError, match=r"^the environment does not allow HTTP requests: .*HTTP_PROXY") as error:
        remote.make(FAR)
    assert "word" not in str(error.value)


def test_a_url_is_shown_without_what_may_be_secret():
    assert without_secrets("https://me:word@host:81/score?token=abc#x") == "https://host:81/score"
    assert without_secrets("me:word@host:81") == "host:81"
