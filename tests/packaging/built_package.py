"""The package as its users get it: built from the sources, and installed into an environment with what it requires."""

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "customized-grpo"
# Whatever looks for a host or connects ends the program, so nothing can come from a network.
NO_NETWORK = """\
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(f"network: {event} {arguments}", file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(refuse)
"""


def build(folder: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it, both in `folder`; without the network.

    The sources are copied: setuptools leaves files among them, and would put stale ones into the next wheel.
    """
    sources, dist = folder / "sources", folder / "dist"
    sources.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, sources)
    for name in ("src", "tests", "docs", "examples", "benchmarks"):  # all of which could get into it by mistake
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (sources / "runs" / "demo").mkdir(parents=True)
    (sources / "runs" / "demo" / "log.jsonl").touch()
    dist.mkdir()
    script = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", script, str(dist), cwd=sources)
    (archive,) = dist.glob("*.tar.gz")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", str(dist))
    run(sys.executable, "-m", "pip", "wheel", *options, str(archive), cwd=folder)
    (wheel,) = dist.glob("*.whl")
    return archive, wheel


def base_environment(folder: Path) -> Path:
    """A new environment with pip's choice for a base installation, and no other package; its Python.

    The packages are links to those of this environment, so it takes a moment and no network.
    """
    venv.create(folder, symlinks=True)
    site = site_packages(folder)
    for each in requirements():
        top = Path(str(each.locate_file("")))
        for name in {file.parts[0] for file in each.files or []} - {"..", "__pycache__"}:
            if (top / name).exists() and not (site / name).exists():
                (site / name).symlink_to(top / name)
    (site / "no_network.py").write_text(NO_NETWORK, encoding="utf-8")
    (site / "no_network.pth").write_text("import no_network\n", encoding="utf-8")
    return folder / "bin" / "python"


def site_packages(environment: Path) -> Path:
    (site,) = environment.glob("lib/python*/site-packages")
    return site


def requirements() -> list[Distribution]:
    """The distributions that a base installation brings, as they are installed here, without the package itself."""
    found: dict[str, Distribution] = {}
    waiting = list(required(NAME))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = distribution(name)
            waiting += required(name)
    return list(found.values())


def required(name: str) -> Iterator[str]:
    """What a distribution needs on this machine, extras apart."""
    from packaging.requirements import Requirement  # torch and transformers need it, so it is there

    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        if (requirement.marker is None or requirement.marker.evaluate({"extra": ""})) and _is_here(requirement.name):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


def _is_here(name: str) -> bool:
    """Whether a requirement is installed. torch's builds for the CPU lack its packages of CUDA."""
    try:
        distribution(name)
    except ImportError:
        if name.startswith(("nvidia-", "cuda-", "triton")):
            return False
        raise
    return True


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Start a program that sees neither this repository nor a home folder's settings of Python."""
    outside = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PIP_"))
    }
    done = subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done
