"""What a command imports before it can answer: most of the time that users wait for `--help` and `train --dry-run`."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "PIL", "scipy", "matplotlib", "jinja2"}
NEVER = {"matplotlib", "openai", "wandb", "trackio", "tensorboard", "pyarrow"}
IMPORTED = """
import sys
from customized_grpo.__main__ import main
sys.argv = ["customized-grpo", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("imported:", *sys.modules)
"""


def imported_by(*arguments: str, folder: Path) -> set[str]:
    """The modules that a fresh interpreter has after a command."""
    command = [sys.executable, "-c", IMPORTED, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("--version",)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path):
    assert imported_by(*arguments, folder=tmp_path) & HEAVY == set()


def test_a_configuration_is_read_without_torch(tmp_path: Path):
    script = (
        "from customized_grpo.config import load_config; load_config('klein', []); import sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY - {"numpy", "PIL"}) == set()


@pytest.mark.parametrize("recipe", ["critters", "critters-paper", "kontext", "klein", "qwen-edit"])
def test_a_dry_run_imports_only_what_it_checks_with(recipe: str, tmp_path: Path):
    """Of torch alone the import takes a second or two."""
    built_in = ("data.source=critters", "data.root=null", "data.train_samples=8")
    heavy = (HEAVY | NEVER) - {"numpy", "PIL"}
    assert imported_by("train", recipe, *built_in, "--dry-run", folder=tmp_path) & heavy == set()


def test_nothing_is_installed_into_the_shell(tmp_path: Path):
    """typer's --install-completion would write into the user's home."""
    command = [sys.executable, "-m", "customized_grpo", "--install-completion"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such option: --install-completion" in done.stderr
