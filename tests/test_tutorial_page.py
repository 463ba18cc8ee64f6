"""docs/tutorial.md: its commands run as they stand there, and reach what the page says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from program import start

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder like the repository."""
    for name in ("examples", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_tutorial_can_be_followed_literally(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for command in "".join(blocks).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command)
        if program == "customized-grpo":  # in this process, which has imported everything already
            answer = start(tuple(arguments), monkeypatch, capsys)
            assert answer.code == 0, f"{command}\n{answer.out}\n{answer.error}"
        else:
            assert program == "python", command
            subprocess.run([sys.executable, *arguments], check=True)
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
