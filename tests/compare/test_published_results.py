"""The figures in docs/results.md and docs/results2.md are those that the committed rows give."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.results import collect
from customized_grpo.compare.tables import tabulate

DOCS = Path(__file__).parents[2] / "docs"


def tabulated(name: str) -> tuple[dict[str, Any], str]:
    comparison = Comparison.read(DOCS / f"{name}.yaml", DOCS / name)
    return tabulate(comparison, collect(comparison))


@pytest.fixture(scope="module")
def tables() -> tuple[dict[str, Any], str]:
    return tabulated("results/experiment")


@pytest.mark.parametrize(
    "name",
    [
        *("results/experiment", "results/finer_front"),
        *("results2/time", "results2/conflict", "results2/weights", "results2/conflict_pilots"),
    ],
)
def test_the_committed_tables_are_those_of_the_committed_rows(name: str):
    content, table = tabulated(name)
    folder = DOCS / name
    assert content["finished"] == content["runs"] or name.startswith("results2/")  # whose page says what is left
    assert (folder / "table.md").read_text(encoding="utf-8") == table + "\n"
    committed = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert _rounded(committed) == _rounded(json.loads(json.dumps(content)))


def test_the_page_counts_the_committed_runs(tables: tuple[dict[str, Any], str]):
    content, _ = tables
    assert f"{content['finished']} of {content['runs']} runs are finished" in _text("docs/results.md")


@pytest.mark.parametrize(
    ("file", "heading"),
    [
        ("docs/results.md", "## What was found"),
        ("docs/results2.md", "## What was found"),
        ("README.md", "## Does it work?"),
    ],
)
def test_every_figure_with_an_interval_is_one_of_the_tables(
    tables: tuple[dict[str, Any], str], file: str, heading: str
):
    """.940 [.927, .953] on the page is 0.940 [0.927, 0.953] in table.md."""
    number = r"[+-]?\d*\.\d{3}"
    interval = rf"({number}) \[({number}), ({number})\]"
    figures = re.findall(interval, _text(file).split(heading)[1].split(" ## ")[0])
    assert len(figures) >= 10
    further = [DOCS / "results" / "finer_front" / "table.md", *DOCS.glob("results2/*/table.md")]
    text = tables[1] + "".join(file.read_text(encoding="utf-8") for file in further)
    known = {tuple(map(float, found)) for found in re.findall(interval, text)}
    assert [figure for figure in figures if tuple(map(float, figure)) not in known] == []


def _text(file: str) -> str:
    """A file of the repository, without emphasis and line breaks."""
    return " ".join((DOCS.parent / file).read_text(encoding="utf-8").replace("**", "").split())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 9) if isinstance(value, float) else value
