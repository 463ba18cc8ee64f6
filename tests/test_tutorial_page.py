"""docs/tutorial.md: its commands run in a shell as they stand there, and reach what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
PROGRAMS = {"python": '"$@"', "customized-grpo": '-m customized_grpo "$@"'}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder like the repository, with the programs that an activated environment has."""
    for name in ("examples", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_can_be_followed_literally(folder: Path):
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        done = subprocess.run(["sh", "-ec", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    base, tuned = (summary(folder, kind)["metrics"] for kind in ("base", "tuned"))
    assert base["joint_success"]["mean"] < 0.5  # the page: .41
    assert tuned["joint_success"]["mean"] > 0.6  # the page: .88
    assert "<title>" in (folder / "rex.html").read_text(encoding="utf-8")
    assert (folder / "rex.safetensors").stat().st_size > 10_000

    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(snippet, {})
    ours = next(folder.glob("generated/*forest*-0.png"))
    theirs, own = (np.asarray(Image.open(path)).astype(int) for path in (folder / "rex.png", ours))
    assert np.abs(theirs - own).max() <= 1  # the last bit of a pixel: see test_readme.py


def summary(folder: Path, kind: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "rex" / f"evaluation-{kind}" / "summary.json").read_text(encoding="utf-8"))
