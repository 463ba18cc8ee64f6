"""What stands around the code agrees with it: requirements and extras, workflows, forms, citation, container."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from structure import PACKAGE, ROOT, parsed

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [file for file in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if file.stem != "config"]
FOR_DEVELOPERS = ("browser", "dev")


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower().replace("_", "-")


BASE = {name_of(each) for each in PROJECT["dependencies"]}
EXTRAS = {extra: {name_of(each) for each in lines} for extra, lines in PROJECT["optional-dependencies"].items()}
OF_USERS = {name for extra, names in EXTRAS.items() if extra not in FOR_DEVELOPERS for name in names}


def imported() -> Iterator[tuple[str, str]]:
    """File and distribution of every import of something else than the standard library and this package."""
    distributions = packages_distributions()
    for file, tree in parsed(PACKAGE).items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for root in {name.partition(".")[0] for name in names} - {"customized_grpo", *sys.stdlib_module_names}:
                yield file, name_of(distributions.get(root, [root])[0])


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# --- requirements and extras -----------------------------------------------------------------------------------------


def test_every_import_is_required_or_an_extras():
    known = BASE | OF_USERS | {"pydantic-core"}  # pydantic's own other half
    assert {f"{file}: {name}" for file, name in imported() if name not in known} == set()


def test_everything_required_is_imported():
    assert BASE - {name for _, name in imported()} == set()


def test_every_extra_is_on_the_page_of_installing():
    page = read("docs/installing.md")
    assert [extra for extra in EXTRAS if f"| `{extra}` |" not in page] == []


def test_every_requirement_has_one_version_that_make_installs():
    pinned = {name_of(line) for line in read("constraints.txt").splitlines()}
    without = {"wandb", "trackio"}  # no test starts them, so `make test-all` does not install them
    assert {name for names in (BASE, *EXTRAS.values()) for name in names} - pinned - {"customized-grpo"} == without


# --- Python ----------------------------------------------------------------------------------------------------------


def test_the_same_versions_of_python_everywhere():
    lowest = PROJECT["requires-python"].removeprefix(">=")
    classified = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    matrix = yaml.safe_load(read(".github/workflows/checks.yml"))["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert classified == matrix
    assert classified[0] == lowest
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in classified


# --- workflows and forms ---------------------------------------------------------------------------------------------


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_calls_targets_that_exist_and_can_only_read(file: Path):
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    called = {name for step in steps(workflow) for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert called <= targets
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v1")), step


def test_the_workflows_check_style_tests_wheel_and_docs():
    runs = "\n".join(
        step["run"] for file in WORKFLOWS for step in steps(yaml.safe_load(file.read_text())) if "run" in step
    )
    for command in (
        "make lint",
        "make install",
        "pytest -n auto",
        "pytest tests/packaging",
        "make docs",
        "make test-all",
    ):
        assert command in runs


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_an_issue_form_has_what_github_needs(file: Path):
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in form["body"]:
        assert part["attributes"].keys() >= ({"value"} if part["type"] == "markdown" else {"label"})
        for page in re.findall(r"[\w/]+\.md", str(part)):
            assert (ROOT / page).is_file()


# --- citation, changelog, container ----------------------------------------------------------------------------------


def test_the_citation_is_complete_and_names_the_paper_of_the_readme():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
    assert (citation["version"], citation["license"]) == (version("customized-grpo"), PROJECT["license"])
    (paper,) = citation["references"]
    bibtex = " ".join(re.findall(r"```bibtex\n(.*?)```", read("README.md"), re.DOTALL)[0].split())
    assert f"title = {{{paper['title']}}}" in bibtex
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author = {{{names}}}" in bibtex
    assert paper["url"].rpartition("/")[2] in bibtex


def test_the_changelog_has_the_version_or_says_that_it_is_not_released():
    log = read("CHANGELOG.md")
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d$", log, re.M) or (
        "## [Unreleased]" in log and f"will be {PROJECT['version']}" in log
    )


def test_the_container_gets_every_file_that_it_copies():
    container = read("container/Containerfile")
    let_in = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", container, re.MULTILINE) for name in line.split()}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r'"\.\[(.*)\]"', container)
    assert extras is not None
    assert set(extras[1].split(",")) <= EXTRAS.keys()
    assert re.search(r"^USER [1-9]\d*$", container, re.MULTILINE)  # not root
