"""What rewards behind a server share: bounded tries, a limit of requests in flight, keys that stay secret.

A request is tried again, with growing pauses, while that may help. Once it is given up it yields a `AskError` instead
of an answer, and its images are NaN. Where the server is away the requests that still wait are given up with it: a
batch costs at most one request's tries and one more, however many images it has.
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
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from customized_grpo.errors import UsageError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between tries; a server that asks for more gets the longest
LARGEST_REPLY = 4 * 2**20  # bytes; scores and one short sentence are far below
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # states that may pass
AWAY = (429, 502, 503, 504)  # states of the server, not of the one request

Cause = Literal["no_answer", "refused", "bad_reply", "null", "out_of_range"]
Answer = TypeVar("Answer")


class AskError(Exception):
    """A try, or after the last one a request, without a usable answer.

    words  what the server said or did, for people: whole, they are cut once the key is out of them
    again  another try may do better
    away   the server as a whole cannot be reached or takes nothing now
    after  seconds that it asked to wait
    """

    def __init__(self, cause: Cause, words: str, *, again: bool = False, away: bool = False, after: float = 0.0):
        super().__init__(words)
        self.cause: Cause = cause
        self.words, self.again, self.away, self.after = words, again, away, after


class RemoteReward:
    """Base of rewards that ask a server. Safe to call from several threads: they share the limit of requests."""

    remote = True

    def __init__(self, url: str, *, retries: int, in_flight: int, secret: str | None):
        self._where, self._secret = shown(url), secret
        self._retries, self._in_flight = retries, in_flight
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="ask")  # its size is the limit
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._answered = self._away = -1.0  # when the last usable answer came, and when the server was given up
        self._last_error: str | None = None
        self._unscored: Counter[Cause] = Counter()
        # Not the module's: training must draw the same numbers whether or not a server had a bad moment.
        self._random = random.Random()

    @property
    def last_error(self) -> str | None:
        """What went wrong last, in one line without keys; None while nothing did."""
        return self._last_error

    @property
    def unscored(self) -> Mapping[Cause, int]:
        """Images without a score so far, by cause.

        "no_answer", "refused" and "bad_reply" cost all images of a request; "null" is what the server would not
        score; "out_of_range" is a score that cannot be true.
        """
        with self._lock:
            return dict(self._unscored)

    def close(self) -> None:
        """Give up what waits, and every later request; for a program that is about to end."""
        self._closed.set()

    def _ask_all(self, tries: Sequence[Callable[[], Answer]]) -> list[Answer | AskError]:
        """One answer or failure for each request, in order; a request is a function that makes one try.

        What a request raises besides `AskError` is raised here.
        """
        called = time.monotonic()
        works = [self._pool.submit(self._ask, once, called) for once in tries]
        return [work.result() for work in works]

    def _count(self, cause: Cause, images: int, words: str | None = None) -> None:
        """Images that stay without a score; words, where there are some, become the last error."""
        with self._lock:
            self._unscored[cause] += images
        if words is not None:
            self._say(words)

    def _ask(self, once: Callable[[], Answer], called: float) -> Answer | AskError:
        began = time.monotonic()
        failure = AskError("no_answer", "not asked: the server was given up")
        for left in range(self._retries, -1, -1):
            if self._closed.is_set() or self._away >= called:
                break
            try:
                answer = once()
            except AskError as failed:
                failure = failed
                self._say(failure.words)
                if not (failure.again and left):
                    self._give_up(failure, began)
                    break
                self._closed.wait(self._pause(failure, self._retries - left))
            else:
                with self._lock:
                    self._answered = time.monotonic()
                return answer
        return failure

    def _give_up(self, failure: AskError, began: float) -> None:
        """Others are answered meanwhile: the server is busy, not away, and what waits still has its chance."""
        with self._lock:
            if failure.away and self._answered < began:
                self._away = time.monotonic()

    def _pause(self, failure: AskError, failures: int) -> float:
        """Seconds before the next try, never more than LONGEST_PAUSE; a random part keeps clients out of step."""
        grown = FIRST_PAUSE * 2**failures * self._random.uniform(0.5, 1)
        return min(max(grown, failure.after), LONGEST_PAUSE)

    def _say(self, words: str) -> None:
        # The key goes before the line is cut, or a part of it could stay. Servers do repeat keys: "incorrect key ...".
        safe = (words.replace(self._secret, "***") if self._secret else words)[:2000]
        line = " ".join("".join(c if c.isprintable() else " " for c in safe).split())
        self._last_error = f"{self._where}: {line if len(line) <= 300 else line[:299] + '…'}"


# --- the wire --------------------------------------------------------------------------------------------------------


def make_client(timeout: float, in_flight: int) -> httpx2.Client:
    """A client for one server. A reply has to be complete `timeout` seconds after its request began.

    Redirects are not followed: a key is for the server that was named.
    """

    def begin(request: httpx2.Request) -> None:
        request.extensions["complete_by"] = time.monotonic() + timeout

    def bound(response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _Bounded(response.stream, response.request.extensions["complete_by"])

    return httpx2.Client(
        timeout=timeout,
        limits=httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight),
        event_hooks={"request": [begin], "response": [bound]},
    )


class _Bounded(httpx2.SyncByteStream):
    """A body with an end: the client's own timeout begins anew with every byte that trickles in."""

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


def no_answer(error: BaseException, timeout: float) -> AskError:
    """The failure where no complete reply came."""
    if isinstance(error, httpx2.TimeoutException):
        words = f"no complete answer within {timeout:g} s"
    else:
        words = f"no answer: {str(error) or type(error).__name__}"
    return AskError("no_answer", words, again=True, away=True)


def refused(response: httpx2.Response) -> AskError:
    """The failure where the reply's status is not 2xx; its body must have been read."""
    status = response.status_code
    words = f"{status} {response.reason_phrase}: {response.text}"
    after = retry_after(response.headers.get("retry-after", ""))
    cause = "no_answer" if status in AWAY else "refused"
    return AskError(cause, words, again=status in AGAIN, away=status in AWAY, after=after)


def retry_after(header: str) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 where there is none that can be read."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def shown(url: str) -> str:
    """A URL for people: without user, password and query, any of which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read_key(variable: str | None, reward: str) -> str | None:
    """The key in an environment variable; None where none is named. Raises ValueError, which never holds the key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"reward {reward!r}: api_key_env names {variable}, and the environment has no such variable")
    # Quotes and backslashes are written otherwise inside JSON and messages, where the key could not be found again.
    if not (key.isascii() and key.isprintable()) or set(key) & set(" \"'\\"):
        raise UsageError(f"reward {reward!r}: {variable} holds no key: there are blanks or odd characters in it")
    return key


def as_png(picture: Image.Image, max_side: int | None = None) -> str:
    """A picture as base64 of a PNG file; shrunk to max_side, never enlarged."""
    if max_side is not None and max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # the network is seldom slower than compression
    return base64.b64encode(file.getvalue()).decode("ascii")
