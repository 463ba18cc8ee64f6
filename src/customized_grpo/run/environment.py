"""What a run was made with: versions, hardware, and the very code."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch

from customized_grpo.files import PACKAGE

PACKAGES = ("customized-grpo", "torch", "diffusers", "transformers", "peft", "numpy")


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, and the command that started it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "command": sys.argv,
    }


def commit(folder: Path = PACKAGE) -> str | None:
    """The commit of the package's files in `folder`, ending in "+changes" where they are not as committed.

    None where nothing says it: an installed wheel that was not built from a repository's address, or no git.
    """
    # A folder inside somebody else's repository (an environment in it, say) is none of that repository's files.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        origin = distribution("customized-grpo").read_text("direct_url.json") if folder == PACKAGE else None
        return json.loads(origin).get("vcs_info", {}).get("commit_id") if origin else None
    found = _git(folder, "rev-parse", "HEAD")
    return f"{found}+changes" if found and _git(folder, "status", "--porcelain", "--", ".") else found


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
