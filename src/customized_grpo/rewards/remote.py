"""What rewards behind a server share: limited retries, a limit of requests in flight, keys that stay secret.

A request is tried again, with growing pauses, while that may help. A request that fails for good yields an `AskError`
instead of an answer, and its images are NaN. If the whole server is down, the requests that still wait fail with it: a
batch then costs the tries of about one request, however many images it has.
"""

from __future__ import annotations

import base64
import io
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.request import getproxies

import httpx2
from PIL import Image

from customized_grpo.errors import UsageError
from customized_grpo.rewards.base import Cause
from customized_grpo.rewards.proxies import describe_proxy, is_this_machine, without_secrets

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between tries; the longest also limits what a server may ask for
LARGEST_REPLY = 4 * 2**20  # bytes; scores and one short sentence need far fewer
RETRY = (408, 425, 429, 500, 502, 503, 504)  # statuses that may pass
SERVER_DOWN = (429, 502, 503, 504)  # statuses that concern the whole server, not one request
LONGEST_LINE = 300  # characters of a server's message that are shown

Answer = TypeVar("Answer")


class AskError(Exception):
    """A try, or after the last try a request, without a usable answer.

    message      what the server said or did; it is shortened only after the key has been removed from it
    retry        another try may succeed
    server_down  the whole server cannot be reached or accepts nothing at present
    wait         seconds that the server asked to wait
    """

    def __init__(
        self, cause: Cause, message: str, *, retry: bool = False, server_down: bool = False, wait: float = 0.0
    ):
        super().__init__(message)
        self.cause: Cause = cause
        self.message, self.retry, self.server_down, self.wait = message, retry, server_down, wait


@dataclass(frozen=True)
class Connection:
    """A server, and how it is asked; `RemoteSettings` explains the fields."""

    url: str
    key: str | None = field(repr=False)
    timeout: float
    retries: int
    in_flight: int


class RemoteReward:
    """Base of rewards that ask a server. It may be called from several threads, which share the limit of requests."""

    remote = True

    def __init__(self, connection: Connection):
        self._secret, self._timeout, self._retries = connection.key, connection.timeout, connection.retries
        self._http = make_client(connection.url, connection.timeout, connection.in_flight)
        self._shown_url = without_secrets(connection.url)
        if uses_proxy(self._http, connection.url):
            self._shown_url += f" ({describe_proxy(connection.url)})"
        # Its size is the limit of requests.
        self._pool = ThreadPoolExecutor(connection.in_flight, thread_name_prefix="ask")
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._last_answer = self._given_up = -1.0  # times of the last usable answer and of giving up on the server
        self._last_error: str | None = None
        self._unscored: Counter[Cause] = Counter()
        # Its own generator: training must draw the same numbers whether or not a server had a bad moment.
        self._random = random.Random()

    @property
    def last_error(self) -> str | None:
        """The latest failure in one line without keys; None if there was none."""
        return self._last_error

    @property
    def unscored(self) -> Mapping[Cause, int]:
        """Images without a score so far, by cause."""
        with self._lock:
            return dict(self._unscored)

    def close(self) -> None:
        """Give up on all waiting and later requests; for a program that is about to end."""
        self._closed.set()

    def _ask_all(self, requests: Sequence[Callable[[], Answer]]) -> list[Answer | AskError]:
        """One answer or failure per request, in order. A request is a function that makes one try.

        Any exception of a request other than `AskError` is raised here.
        """
        called = time.monotonic()
        futures = [self._pool.submit(self._ask, request, called) for request in requests]
        return [future.result() for future in futures]

    def _count(self, cause: Cause, images: int, message: str | None = None) -> None:
        """Count images that remain without a score, and report the message if there is one."""
        with self._lock:
            self._unscored[cause] += images
        if message is not None:
            self._report(message)

    def _ask(self, request: Callable[[], Answer], called: float) -> Answer | AskError:
        started = time.monotonic()
        failure = AskError("no_answer", "not asked: the server was given up")
        for tries_left in range(self._retries, -1, -1):
            if self._closed.is_set() or self._given_up >= called:
                break
            try:
                answer = request()
            except AskError as error:
                failure = error
                self._report(failure.message)
                if not (failure.retry and tries_left):
                    self._give_up_if_down(failure, started)
                    break
                self._closed.wait(self._pause(failure, self._retries - tries_left))
            else:
                with self._lock:
                    self._last_answer = time.monotonic()
                return answer
        return failure

    def _give_up_if_down(self, failure: AskError, started: float) -> None:
        """Give up on the server, unless it answered another request meanwhile: then it is busy, not down."""
        with self._lock:
            if failure.server_down and self._last_answer < started:
                self._given_up = time.monotonic()

    def _pause(self, failure: AskError, failures: int) -> float:
        """Seconds before the next try, at most LONGEST_PAUSE; a random part keeps clients out of step."""
        pause = FIRST_PAUSE * 2 ** min(failures, 10) * self._random.uniform(0.5, 1)  # 2**10: beyond the longest
        return min(max(pause, failure.wait), LONGEST_PAUSE)

    def _report(self, message: str) -> None:
        # Servers do repeat keys: "incorrect key ...". Remove the key before shortening, or part of it could remain.
        safe = (message.replace(self._secret, "***") if self._secret else message)[:2000]
        line = " ".join("".join(c if c.isprintable() else " " for c in safe).split())
        line = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"
        self._last_error = f"{self._shown_url}: {line}"


# --- HTTP ------------------------------------------------------------------------------------------------------------


def make_client(url: str, timeout: float, in_flight: int) -> httpx2.Client:
    """A client for one server. A reply must be complete `timeout` seconds after its request started.

    The environment's proxies are used, except for servers on this machine, which no proxy reaches. Redirects are not
    followed: the key is meant only for the server that was named. Raises UsageError if the environment names a proxy
    or certificates that cannot be used.
    """

    def set_deadline(request: httpx2.Request) -> None:
        request.extensions["complete_by"] = time.monotonic() + timeout

    def limit_body(response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _LimitedBody(response.stream, response.request.extensions["complete_by"])

    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    try:
        return httpx2.Client(
            timeout=timeout,
            limits=limits,
            transport=httpx2.HTTPTransport(limits=limits) if is_this_machine(url) else None,  # one without proxies
            event_hooks={"request": [set_deadline], "response": [limit_body]},
        )
    except (ValueError, OSError, ImportError, httpx2.InvalidURL) as error:
        # A proxy's URL may hold a password, and an error may quote any part of it.
        reason = type(error).__name__ if any("@" in value for value in getproxies().values()) else _reason(error)
        raise UsageError(
            f"the environment does not allow HTTP requests: {reason}; check SSL_CERT_FILE and the proxies in "
            "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        ) from error


def uses_proxy(client: httpx2.Client, url: str) -> bool:
    """Whether a client asks a proxy for this URL, by the environment's rules as the client reads them."""
    return client._transport_for_url(httpx2.URL(url)) is not client._transport


class _LimitedBody(httpx2.SyncByteStream):
    """A body with a deadline and a largest size: the client's own timeout starts again with every byte."""

    def __init__(self, stream: httpx2.SyncByteStream, complete_by: float):
        self.stream, self.complete_by = stream, complete_by

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self.stream:
            size += len(part)
            if size > LARGEST_REPLY:
                raise httpx2.ReadError(f"a reply of more than {LARGEST_REPLY} bytes")
            if time.monotonic() > self.complete_by:
                raise httpx2.ReadTimeout("the reply was not complete in time")
            yield part

    def close(self) -> None:
        self.stream.close()


def no_reply(error: BaseException, timeout: float) -> AskError:
    """The failure of a try that got no complete reply."""
    if isinstance(error, httpx2.TimeoutException):
        message = f"no complete answer within {timeout:g} s"
    else:
        message = f"no answer: {_reason(error)}"
    return AskError("no_answer", message, retry=True, server_down=True)


def error_status(response: httpx2.Response) -> AskError:
    """The failure of a try whose reply has a status other than 2xx; its body must have been read."""
    status = response.status_code
    message = f"{status} {response.reason_phrase}: {response.text}"
    wait = retry_after(response.headers.get("retry-after", ""))
    down = status in SERVER_DOWN
    return AskError("no_answer" if down else "refused", message, retry=status in RETRY, server_down=down, wait=wait)


def retry_after(header: str) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 if it is missing or unreadable."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def read_key(variable: str | None, reward: str) -> str | None:
    """The key in an environment variable; None if no variable is named.

    Raises UsageError, whose message never holds the key.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"reward {reward!r}: api_key_env names {variable}, but that variable is not set")
    # JSON and messages escape quotes and backslashes, so a key with them could not be found and removed.
    if not (key.isascii() and key.isprintable()) or set(key) & set(" \"'\\"):
        raise UsageError(
            f"reward {reward!r}: the value of {variable} is not a key: it holds spaces, quotes or other odd characters"
        )
    return key


def as_png(picture: Image.Image, max_side: int | None = None) -> str:
    """A picture as base64 of a PNG file; shrunk to max_side, never enlarged."""
    if max_side is not None and max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # compression is usually slower than the network
    return base64.b64encode(file.getvalue()).decode("ascii")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
