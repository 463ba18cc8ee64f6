"""SIGTERM and SIGINT: finish the update, save, and exit with the code for that signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from tqdm import tqdm

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Inside `with`, the first signal is only recorded; a SIGINT after it does what it did before `with`.

    A signal that the process ignores (under nohup, or in the background) stays ignored. In a thread other than the
    main one nothing is recorded: signals do not reach it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # None is a handler from outside Python, which could not be restored
            self._before = {number: h for number, h in handlers.items() if h not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._record)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether to stop. Can become true at any moment, and then stays true."""
        return self.signal is not None

    def exit(self, message: str) -> NoReturn:
        """Print the message and raise SystemExit with 128 + the signal's number, as shells report it.

        A process that got no signal itself, but stops with the other processes of the run, exits as if by SIGTERM.
        """
        number = self.signal or signal.SIGTERM
        tqdm.write(f"{number.name}: {message}", file=sys.stderr)
        raise SystemExit(128 + number)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        # os.write, because the handler may interrupt a print
        line = f"\n{self.signal.name}: stopping once this update is saved; interrupt again to stop at once\n"
        os.write(2, line.encode())
