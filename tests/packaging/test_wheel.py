"""The wheel and the source distribution: what is in them, and that the wheel alone is enough."""

import json
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from built_package import ROOT, base_environment, build, run, site_packages

pytestmark = pytest.mark.slow
LARGEST = 10_000_000  # bytes; docs/installing.md states the size. The built-in weights take three quarters of it.
IMPORT_ALL = """
import json, pkgutil
from importlib import import_module
import customized_grpo
absent = {}
for module in pkgutil.walk_packages(customized_grpo.__path__, "customized_grpo."):
    if not module.name.endswith("__main__"):
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:
            absent[module.name] = error.name
print(json.dumps(absent))
"""
MISSING = """
import torch
from pathlib import Path
from customized_grpo.data.subjects200k import load_subjects200k
from customized_grpo.errors import InputError
from customized_grpo.policies.quantise import quantise
from customized_grpo.rewards.remote_settings import VlmJudgeSettings
from customized_grpo.run.trackers import Trackers

judge = VlmJudgeSettings(base_url="http://127.0.0.1:8000/v1", model="m", judges="prompt")
layer, cpu = torch.nn.Linear(8, 8), torch.device("cpu")
for use in (
    *(lambda name=name: Trackers.check((name,)) for name in ("tensorboard", "wandb", "trackio")),
    lambda: judge.make(cpu),
    lambda: load_subjects200k(Path("data")),
    lambda: quantise(layer, "int8", [""], cpu),
    lambda: quantise(layer, "nf4", [""], cpu),
):
    try:
        use()
    except InputError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("environment")
    base_environment(folder)
    pip(folder, "install", "--no-deps", "--no-index", built[1])
    return folder


@pytest.fixture
def python(environment: Path, tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """Starts the environment's Python in an empty folder."""
    return lambda *arguments, **options: run(environment / "bin" / "python", *arguments, cwd=tmp_path, **options)


def pip(environment: Path, *arguments: str | Path) -> None:
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, *arguments, cwd=environment)


def listing(environment: Path) -> list[str]:
    """The names in site-packages and of programs."""
    return sorted(
        path.name for folder in (site_packages(environment), environment / "bin") for path in folder.iterdir()
    )


def package_files() -> set[str]:
    """Every file of the package as the repository has it."""
    package = ROOT / "src" / "customized_grpo"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT / "src").as_posix() for path in files}


# --- what is in them -------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(wheel.read(f"{about}/METADATA"))
    assert {name for name in names if not name.startswith(about)} == package_files()
    assert f"{about}/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert built[1].stat().st_size < LARGEST


def test_the_package_has_weights_recipes_templates_and_architectures():
    """What `package_files` compares with is not empty by mistake."""
    files = package_files()
    for name in (
        *(
            "critters/weights/generator/transformer/diffusion_pytorch_model.safetensors",
            "critters/weights/dye/dino/config.json",
        ),
        *("recipes/critters.yaml", "recipes/klein-24gb.yaml", "policies/architectures.yaml"),
        *("report/template.html", "report/style.css", "report/script.js"),
    ):
        assert f"customized_grpo/{name}" in files


def test_the_source_distribution_has_no_tests_and_no_runs(built: tuple[Path, Path]):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if name.startswith("src/customized_grpo/")} == {
        f"src/{name}" for name in package_files()
    }
    others = {name for name in names if not name.startswith("src/")}
    assert others == {
        *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "MANIFEST.in"),
        *("PKG-INFO", "setup.cfg"),  # setuptools' own
    }
    assert built[0].stat().st_size < LARGEST


# --- installed alone -------------------------------------------------------------------------------------------------


def test_the_demo_runs_without_repository_network_and_extras(
    environment: Path, python: Callable[..., CompletedProcess[str]], tmp_path: Path
):
    done = run(environment / "bin" / "customized-grpo", "demo", "--updates", "2", "--cases", "12", cwd=tmp_path)
    assert "joint" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    for name in ("report.html", "run/adapter/config.yaml", "run/environment.json", "cases/reference-00.png"):
        assert (tmp_path / "runs" / "demo" / name).is_file(), name
    where = python("-c", "import customized_grpo; print(customized_grpo.__file__)").stdout
    assert Path(where).is_relative_to(environment)


def test_the_program_starts_as_a_module(python: Callable[..., CompletedProcess[str]]):
    assert python("-m", "customized_grpo", "--version").stdout == "customized-grpo 0.1.0\n"


def test_only_the_judge_imports_an_extra(python: Callable[..., CompletedProcess[str]]):
    """Every other module can be imported in a base installation."""
    assert json.loads(python("-c", IMPORT_ALL).stdout) == {"customized_grpo.rewards.vlm_judge": "openai"}


def test_a_missing_extra_is_one_line_that_names_it(python: Callable[..., CompletedProcess[str]]):
    lines = python("-c", MISSING).stdout.splitlines()
    extras = ("tensorboard", "wandb", "trackio", "judge", "datasets", "quantise", "nf4")
    assert len(lines) == len(extras)
    for extra, line in zip(extras, lines, strict=True):
        assert f'pip install "customized-grpo[{extra}]"' in line


def test_a_network_would_have_been_noticed(python: Callable[..., CompletedProcess[str]]):
    done = python("-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9')", check=False)
    assert done.returncode == 99


def test_uninstalling_leaves_nothing(built: tuple[Path, Path], tmp_path: Path):
    base_environment(tmp_path / "env")
    run(tmp_path / "env" / "bin" / "python", "-c", "pass", cwd=tmp_path)  # compiles the module that forbids a network
    before = listing(tmp_path / "env")
    pip(tmp_path / "env", "install", "--no-deps", "--no-index", built[1])
    assert "customized-grpo" in listing(tmp_path / "env")
    run(tmp_path / "env" / "bin" / "customized-grpo", "--help", cwd=tmp_path)  # leaves compiled modules
    pip(tmp_path / "env", "uninstall", "--yes", "customized-grpo")
    assert listing(tmp_path / "env") == before
