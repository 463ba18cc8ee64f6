"""The program as a user starts it, but in this process, and what every refusal of bad input must look like."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from customized_grpo import cli

TINY = str(Path(__file__).with_name("tiny.yaml"))


class Answer(NamedTuple):
    code: int
    out: str
    error: str


def start(arguments: tuple[object, ...], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Exit code and both streams. Any exception other than SystemExit is a bug and passes through."""
    patch.setattr(sys, "argv", ["customized-grpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return Answer(int(stopped.value.code or 0), captured.out, captured.err)


class Refusal:
    """Starts the program in `folder` with input that it must refuse: exit code 2, one message, nothing written.

    A call returns the message, which has one line per mistake.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.folder, self.patch, self.capsys = folder, patch, capsys
        patch.chdir(folder)

    def __call__(self, *arguments: object) -> str:
        before = self._files()
        answer = start(arguments, self.patch, self.capsys)
        assert answer.code == 2, (answer.code, answer.error)
        assert self._files() == before
        assert "Traceback" not in answer.error
        _, *messages = re.split(r"^[eE]rror: ", answer.error, flags=re.MULTILINE)  # typer's own begin with a capital
        assert len(messages) == 1, answer.error
        message = messages[0].rstrip("\n")
        assert message
        assert all(len(line) < 700 for line in message.split("\n")), message
        return message

    def train(self, *overrides: object) -> str:
        return self("train", TINY, f"output={self.folder / 'run'}", *overrides)

    def line(self, *arguments: object) -> str:
        """The message of a call that makes one mistake: a single line."""
        message = self(*arguments)
        assert "\n" not in message
        return message

    def _files(self) -> dict[str, tuple[int, int] | None]:
        """Sizes and times of all files, so that any change shows."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path): None if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
