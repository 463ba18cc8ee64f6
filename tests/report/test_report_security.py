"""A page of folders from other machines: texts stay texts, and no other file of this machine is put on it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from report_folders import HOSTILE, fake_evaluation, fake_run

from customized_grpo.report import ReportError, write_report

HOSTILE_NAMES = (
    HOSTILE,
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "javascript:alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% for x in y %}",
    "\u202egnp.exe",
)


class Elements(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_page(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 2  # the data and the program
    assert not {tag for tag, _ in elements} & {"iframe", "object", "embed", "base", "form"}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert str(attributes.get(name, "#")).startswith(("data:image/", "data:,", "#"))
    return text


@pytest.mark.parametrize("text", HOSTILE_NAMES)
def test_hostile_prompts_warnings_subjects_metrics_and_file_names_are_only_text(text: str, tmp_path: Path):
    run = fake_run(tmp_path / f"run {text.replace('/', '|')}"[:100], prompt=text, warning=text)
    shutil.move(run, tmp_path / "plain")
    hostile = tmp_path / ("n " + text.replace("/", "|"))[:100]
    shutil.copytree(tmp_path / "plain", hostile)
    config = yaml.safe_load((hostile / "config.yaml").read_text()) | {
        "model": {"path": text},
        "data": {"source": text},
    }
    (hostile / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [json.loads(line) for line in (hostile / "evaluations.jsonl").read_text().splitlines()]
    for row in rows:
        row[text] = 0.5
        row["scored"][text], row["spread"][text] = 4, 0.1
    (hostile / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for cases in hostile.glob("images/*/cases.json"):
        content = [{**each, "subject": text, "sample": text} for each in json.loads(cases.read_text())[:1]]
        cases.write_text(json.dumps(content))
    check_page(write_report([hostile], tmp_path / "page.html"))


def test_a_hostile_evaluation_is_only_text(tmp_path: Path):
    folder = fake_evaluation(tmp_path / "evaluation", cases=2, side=8)
    for file in ("settings.json", "summary.json", "rows.jsonl"):
        content = (folder / file).read_text(encoding="utf-8")
        for name in ("dino", "clip_t", "critters"):
            content = content.replace(f'"{name}"', json.dumps(HOSTILE))
        (folder / file).write_text(content, encoding="utf-8")
    check_page(write_report([folder], tmp_path / "page.html"))


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "eval-00000/../../../secret.png"])
@pytest.mark.parametrize("field", ["reference", "picture"])
def test_a_run_from_elsewhere_cannot_put_other_files_on_the_page(field: str, name: str, tmp_path: Path):
    run = fake_run(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for file in run.glob("images/*/cases.json"):
        cases = json.loads(file.read_text())
        cases[0][field] = name
        file.write_text(json.dumps(cases))
    with pytest.raises(ReportError, match="lies outside"):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
