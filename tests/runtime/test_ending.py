"""Ctrl-C at any moment: one line that says what is kept and how to go on, and the exit code of the signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import start_program
from program import TINY

ANEW = "nothing is kept; the same command begins anew"
# Sends the signal when a library is about to be imported.
AT_IMPORT = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {library!r}:
            signal.raise_signal({number})
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["customized-grpo", *{arguments!r}]
from customized_grpo.__main__ import main
main()
"""


def python(code: str, folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "library", "message"),
    [
        (["--help"], "typer", "nothing was done"),
        (["evaluate", TINY, "--output", "ev"], "torch", "2 images are kept in ev; the same command goes on"),
        (["evaluate", TINY, "--output", "new"], "torch", ANEW),
        (["evaluate", TINY], "torch", "nothing was added to what is kept; the same command goes on"),
        (["probe", "critters"], "torch", ANEW),
        (["check-rewards", "critters"], "torch", ANEW),
        (["demo"], "torch", ANEW),
        (["generate"], "torch", ANEW),
        (["export", "run", "--format", "peft"], "torch", ANEW),
        (["build-critters"], "torch", ANEW),
        (
            ["build-critters", "--work", "w"],
            "torch",
            "each stage is kept in w up to its last save; *",
        ),
        (["compare", "c.yaml"], "torch", "finished runs are kept, and what others saved; the same command goes on"),
        (["train", "critters"], "torch", ANEW),
        (
            ["train", "critters", "--output", "my run", "--resume"],
            "torch",
            "what was saved in my run is kept; go on with: customized-grpo train 'my run' --resume",
        ),
    ],
)
def test_a_signal_while_libraries_are_imported(arguments: list[str], library: str, message: str, tmp_path: Path):
    for file, content in (("ev/rows.jsonl", "{}\n{}\n{"), ("w/vae.safetensors", ""), ("my run/environment.json", "")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(content)
    number = signal.SIGTERM if "probe" in arguments else signal.SIGINT
    code = AT_IMPORT.format(library=library, arguments=arguments, number=int(number))
    exit_code, error = python(code, tmp_path)
    assert exit_code == 128 + number, error
    assert error.strip().startswith(f"{number.name}: {message.rstrip('*')}")
    assert len(error.strip().splitlines()) == 1


def test_outside_signals_do_what_they_did_before(tmp_path: Path):
    code = """
import signal
from customized_grpo.runtime.stopping import ending
signal.signal(signal.SIGINT, signal.SIG_IGN)
before = signal.getsignal(signal.SIGTERM)
with ending(lambda: "outer"), ending(lambda: "inner"):
    signal.raise_signal(signal.SIGINT)  # ignored, as under nohup
assert signal.getsignal(signal.SIGTERM) is before
with ending(lambda: "outer"):
    with ending(lambda: "inner"):
        pass
    signal.raise_signal(signal.SIGTERM)
"""
    assert python(code, tmp_path) == (143, "\nSIGTERM: outer\n")


def _wait(until: Callable[[], bool], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)


def _rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_an_evaluation_keeps_its_rows_and_goes_on(tmp_path: Path):
    log, output = tmp_path / "log", tmp_path / "ev"
    settings = (TINY, "data.train_samples=4", "groups.rollout_batch=2", "--cases", 500, "--device", "cpu")
    process = start_program(["evaluate", *settings, "--output", output], log)
    _wait(lambda: _rows(output / "rows.jsonl") > 1, log)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    rows = _rows(output / "rows.jsonl")
    assert process.exitcode == 130
    assert log.read_text().endswith(f"\nSIGINT: {rows} images are kept in {output}; the same command goes on\n")
    assert "Traceback" not in log.read_text()
