"""What a run was made with: versions, hardware and the exact code."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from customized_grpo.files import PACKAGE
from customized_grpo.files.json_text import read_json
from customized_grpo.files.plugins import installed

ENVIRONMENT = "environment.json"  # the file in the folder of a run
PACKAGES = ("customized-grpo", "torch", "diffusers", "transformers", "peft", "numpy")


class _Recorded(BaseModel):
    plugins: dict[str, str] = {}  # older versions recorded none


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, and the command that started it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in PACKAGES},
        "plugins": installed(),
        "commit": commit(),
        "command": sys.argv,
    }


def changed_plugins(run: Path) -> list[str]:
    """What other packages registered when a run was last started and now do differently, one line each."""
    file = run / ENVIRONMENT
    if not file.is_file():
        return []
    known = read_json(file, _Recorded, "restore it from a copy, or write {} into it").get("plugins", {})
    now = installed()
    return [
        f"the {name} is of {now.get(name, 'no package')}, and the run was last started with {package}"
        for name, package in known.items()
        if now.get(name) != package
    ]


def commit(folder: Path = PACKAGE) -> str | None:
    """The git commit of the package's files in `folder`, with "+changes" appended if they differ from it.

    None if it is unknown: git is missing, or the package was installed from a wheel without a repository's address.
    """
    # A folder inside an unrelated repository (a virtual environment, for instance) is not tracked by it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        origin = distribution("customized-grpo").read_text("direct_url.json") if folder == PACKAGE else None
        return json.loads(origin).get("vcs_info", {}).get("commit_id") if origin else None
    head = _git(folder, "rev-parse", "HEAD")
    return f"{head}+changes" if head and _git(folder, "status", "--porcelain", "--", ".") else head


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None
