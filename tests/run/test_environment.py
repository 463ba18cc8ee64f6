import json
import subprocess
from pathlib import Path

import pytest

from customized_grpo.run.environment import commit, environment


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a package, in a repository with other files."""
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (tmp_path / "README.md").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    return folder


def test_the_environment_names_versions_code_and_command():
    found = environment()
    machine = {"python", "platform", "processor_threads", "accelerator"}
    assert set(found) == machine | {"packages", "plugins", "commit", "command"}
    assert found["plugins"] == {}  # tests/test_plugins.py installs some
    assert {"customized-grpo", "torch", "diffusers", "transformers", "peft"} <= set(found["packages"])
    json.dumps(found)


def test_the_commit_shows_uncommitted_changes_of_the_code(package: Path):
    head = git(package, "rev-parse", "HEAD")
    assert commit(package) == head
    (package.parents[1] / "README.md").write_text("new text, same code")
    assert commit(package) == head
    (package / "new.py").touch()
    assert commit(package) == f"{head}+changes"


def test_a_package_inside_an_unrelated_repository_has_no_commit(package: Path):
    """Such as a virtual environment in a checkout of another project."""
    installed = package.parents[1] / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert commit(installed) is None


def test_without_git_the_commit_is_unknown(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert commit(package) is None
