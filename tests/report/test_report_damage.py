"""Damaged files in the folders of a report: one line with the file, the place in it, and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_folders import fake_comparison, fake_demo, fake_evaluation, fake_run

from customized_grpo.errors import InputError
from customized_grpo.report import write_report

WAY_OUT = "copy the folder again, or make it again with this version"
CASES = "images/eval-00000/cases.json"


def fake_probe(folder: Path) -> Path:
    folder.mkdir()
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    step = {
        **{"step": 0, "sigma": 1.0, "spread": {"identity_reward": figure, "prompt_reward": figure}},
        **{"gradient_factor": 2.0, "gradient_norm": figure, "prompt_share": None, "oracle_prompt_share": None},
        **{"fitted_weight": None, "present_weight": 0.5},
    }
    config = {"noise": {"dynamics": "flow", "level": 0.8}, "model": {"path": "critters"}}
    content = {"config": config, "steps": [step], "adapter": None, "prompts": 2, "draws": 2, "fit": None}
    (folder / "probe.json").write_text(json.dumps({**content, "obstacle": "too few prompts"}))
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "run": fake_run,
    "demo": fake_demo,
    "comparison": fake_comparison,
    "evaluation": lambda folder: fake_evaluation(folder, cases=2, side=8),
    "probe": fake_probe,
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind."""
    folder = tmp_path_factory.mktemp("intact")
    for kind, make in FOLDERS.items():
        make(folder / kind)
    return folder


def refusal(folder: Path) -> str:
    page = folder.parent / "page.html"
    with pytest.raises(InputError) as error:
        write_report([folder], page)
    assert not page.exists()
    message = str(error.value)
    assert "\n" not in message
    return message


def copy(intact: Path, kind: str, target: Path) -> Path:
    return Path(shutil.copytree(intact / kind, target / kind))


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_an_intact_folder_is_shown(kind: str, intact: Path, tmp_path: Path):
    assert write_report([intact / kind], tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("run", name) for name in ("environment.json", "metrics.jsonl", "evaluations.jsonl", CASES)),
        *(("demo", name) for name in ("summary.json", "run/environment.json", "cases/base/cases.json")),
        *(("comparison", name) for name in ("comparison.json", "arms/naive/seed-0/result.json")),
        *(("evaluation", name) for name in ("settings.json", "summary.json", "rows.jsonl")),
        ("probe", "probe.json"),
    ],
)
def test_a_file_of_something_else_is_named(kind: str, name: str, intact: Path, tmp_path: Path):
    folder = copy(intact, kind, tmp_path)
    for content in (b"{\n", b"[1]\n", b'"text"\n'):
        (folder / name).write_bytes(content)
        assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"arms": {"naive": {"seeds'])
def test_a_file_that_is_not_json_is_named(content: bytes, intact: Path, tmp_path: Path):
    folder = copy(intact, "comparison", tmp_path)
    (folder / "comparison.json").write_bytes(content)
    assert refusal(folder).startswith(f"{folder / 'comparison.json'} is not JSON: ")


@pytest.mark.parametrize("content", ["{", "[1]", "updates: many", "\t", ""])
def test_a_configuration_that_is_none_is_named(content: str, intact: Path, tmp_path: Path):
    folder = copy(intact, "run", tmp_path)
    (folder / "config.yaml").write_text(content)
    assert str(folder / "config.yaml") in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("demo", "run/config.yaml"),
        ("demo", "run/environment.json"),
        ("comparison", "arms/sars_tdw/seed-1/result.json"),
    ],
)
def test_a_missing_file_is_named(kind: str, name: str, intact: Path, tmp_path: Path):
    folder = copy(intact, kind, tmp_path)
    (folder / name).unlink()
    assert refusal(folder).startswith(f"{folder / name} cannot be read: No such file or directory; ")


Edit = Callable[[Any], object]


@pytest.mark.parametrize(
    ("kind", "name", "edit", "message"),
    [
        ("comparison", "comparison.json", lambda c: c.pop("differences"), "differences: field required"),
        ("comparison", "comparison.json", lambda c: c["arms"].clear(), "arms: dictionary should have at least 1 item"),
        (
            "comparison",
            "comparison.json",
            lambda c: c["arms"].update({"../../elsewhere": c["arms"]["naive"]}),
            "arms.../../elsewhere.[key]: value error, this is not a name for a folder",
        ),
        (
            "comparison",
            "comparison.json",
            lambda c: c["arms"]["naive"]["seeds"].update({"0/../..": {}}),
            "arms.naive.seeds.0/../...[key]: string should match pattern",
        ),
        (
            "comparison",
            "comparison.json",
            lambda c: c["arms"]["naive"]["figures"].update(dino={"mean": "0.5"}),
            "arms.naive.figures.dino.mean: input should be a valid number",
        ),
        ("demo", "summary.json", lambda c: c["tuned"].update(dino=0.5), "tuned.dino: input should be a valid"),
        ("evaluation", "summary.json", lambda c: c["metrics"]["dino"].pop("unscored"), "metrics.dino.unscored: field"),
        ("evaluation", "settings.json", lambda c: c.pop("sampling"), "sampling: field required"),
        ("probe", "probe.json", lambda c: c["steps"].clear(), "steps: list should have at least 1 item"),
        ("run", CASES, lambda c: c[0]["scores"].update(dino=float("nan")), "0.scores.dino: input should be a finite"),
    ],
)
def test_a_file_of_another_version_is_refused_with_the_place(
    kind: str, name: str, edit: Edit, message: str, intact: Path, tmp_path: Path
):
    folder = copy(intact, kind, tmp_path)
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    found = refusal(folder)
    assert found.startswith(f"{folder / name}: {message}")
    assert found.endswith(f"; {WAY_OUT}")


@pytest.mark.parametrize(
    ("name", "edit", "place"),
    [
        ("metrics.jsonl", lambda row: row.pop("update"), "update"),
        ("metrics.jsonl", lambda row: row.update(steps=[1]), "0.steps.0: input should be a valid dictionary"),
        ("metrics.jsonl", lambda row: row.update(warnings=[{"update": 1}]), "0.warnings.0.kind: field required"),
        ("evaluations.jsonl", lambda row: row.update(update=1.5), "update"),
        ("evaluations.jsonl", lambda row: row.update(spread=0.5), "0.spread: input should be a valid dictionary"),
    ],
)
def test_a_row_of_another_version_is_refused_with_the_place(
    name: str, edit: Edit, place: str, intact: Path, tmp_path: Path
):
    folder = copy(intact, "run", tmp_path)
    first, *others = (folder / name).read_text().split("\n")
    row = json.loads(first)
    edit(row)
    (folder / name).write_text("\n".join([json.dumps(row), *others]))
    message = refusal(folder)
    assert message.startswith(str(folder / name))
    assert place in message


def test_a_row_that_is_being_written_is_left_out(intact: Path, tmp_path: Path):
    folder = copy(intact, "run", tmp_path)
    page = write_report([folder], tmp_path / "page.html").read_text()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"update": 13, "reward_id')
    assert write_report([folder], tmp_path / "page.html").read_text() == page


def test_evaluations_with_other_cases_are_left_out_of_the_film(intact: Path, tmp_path: Path):
    """A picture of each case after each update is what the slider shows."""
    folder = copy(intact, "run", tmp_path)
    assert "Watch it learn" in write_report([folder], tmp_path / "page.html").read_text()
    cases = json.loads((folder / CASES).read_text())
    (folder / CASES).write_text(json.dumps(cases[:1]))
    assert "Watch it learn" not in write_report([folder], tmp_path / "page.html").read_text()


def test_settings_that_a_report_does_not_need_may_change(intact: Path, tmp_path: Path):
    folder = copy(intact, "run", tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "a_setting_of_the_future": {"size": 3}}))
    assert "a_setting_of_the_future" in write_report([folder], tmp_path / "page.html").read_text()
