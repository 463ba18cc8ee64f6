"""SIGTERM and SIGINT: finish and save, or end at once; say how to go on, and exit with the signal's code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def ending(kept: Callable[[], str]) -> Iterator[None]:
    """Inside `with`, a signal ends the process at once, with one line: what is kept, and how to go on.

    The process ends without cleaning up, as if it was killed: an exception could be lost in a library that is being
    imported, or wait for a server's answer. So this is for commands, whose files are whole at any moment. An inner
    `with` takes the place of an outer one. Where signals are ignored they stay ignored, as with `StopRequest`.

    kept  called in the middle of anything: it must not load, lock or print
    """

    def end(number: int, _frame: FrameType | None) -> None:
        _write(f"{signal.Signals(number).name}: {kept()}")
        os._exit(128 + number)

    before = _handle(end)
    try:
        yield
    finally:
        _restore(before)


class StopRequest:
    """Inside `with`, the first signal is only recorded; a SIGINT after it does what it did before `with`.

    A signal that the process ignores (under nohup, or in the background) stays ignored. In a thread other than the
    main one nothing is recorded: signals do not reach it.

    until  what is finished before the work stops, for the line that answers the signal
    """

    def __init__(self, until: str = "once this update is saved") -> None:
        self.signal: signal.Signals | None = None
        self.until = until
        self._before: Mapping[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = _handle(self._record)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _restore(self._before)

    @property
    def requested(self) -> bool:
        """Whether to stop. Can become true at any moment, and then stays true."""
        return self.signal is not None

    def exit(self, message: str) -> NoReturn:
        """Print the message and raise SystemExit with 128 + the signal's number, as shells report it.

        A process that got no signal itself, but stops with the other processes of the run, exits as if by SIGTERM.
        """
        number = self.signal or signal.SIGTERM
        print(f"{number.name}: {message}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        _write(f"{self.signal.name}: stopping {self.until}; interrupt again to stop at once")


def _handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Install a handler for both signals; returns the handlers before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    # None is a handler from outside Python, which could not be restored
    before = {number: h for number, h in handlers.items() if h not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _write(line: str) -> None:
    """To stderr, on a line of its own below a progress bar; os.write, because a handler may interrupt a print."""
    os.write(2, f"\n{line}\n".encode(errors="backslashreplace"))
