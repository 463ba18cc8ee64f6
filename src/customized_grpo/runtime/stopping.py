"""SIGTERM and SIGINT: finish the update, save, and leave with the exit code that says which of them it was."""

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
    """Inside `with`, the first of the signals is only noted; a SIGINT after that does what it did before `with`.

    A signal that the process ignores stays ignored, as that of a program under nohup or in the background. Outside
    the main thread nothing is noted: signals do not reach it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            # None: a handler from outside Python, which could not be put back
            self._before = {n: each for n, each in handlers.items() if each not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether to stop. It turns true at any moment, and stays so."""
        return self.signal is not None

    def exit(self, message: str) -> NoReturn:
        """Say the message and raise SystemExit with 128 + the signal's number, as shells count.

        A process that stops because another one of the run was asked to takes that for a SIGTERM.
        """
        number = self.signal or signal.SIGTERM
        tqdm.write(f"{number.name}: {message}", file=sys.stderr)
        raise SystemExit(128 + number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        # Not print: a handler may come in the middle of one.
        line = f"\n{self.signal.name}: stopping once this update is saved; interrupt again to stop at once\n"
        os.write(2, line.encode())
