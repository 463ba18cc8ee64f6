"""docs/diagnostics.md explains every figure that a run logs, and the figures of the pages are those of the code."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import customized_grpo
from customized_grpo.training.trainer import Trainer
from method_figures import FIGURES, FOLDER, drawn

PAGE = (Path(__file__).parents[1] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
UPDATES, EVALUATIONS = PAGE.split("## Every figure of an update")[1].split("| in `evaluations.jsonl` |")
# Logged only if something goes wrong: a server that does not answer, memory that runs out, a finding of the watch.
IN_TROUBLE = {"lost", "out_of_memory", "rollout_batch", "update_batch", "warnings"}
RUNS = {
    "usual": ("objective.kl=0.1", "weighting.balance=dual"),
    "nft": ("objective.kind=nft", "shaping.rule=linear"),
    "unscored": ("rewards.look.name={file}:some", "rewards.look.role=quality", "rewards.look.weight=0.1"),
}


def explained(table: str) -> set[str]:
    """The names in the first column."""
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


@pytest.fixture
def rows(make_trainer: Callable[..., Trainer], tmp_path: Path) -> tuple[set[str], set[str], set[str]]:
    """The keys of updates, of their steps and of evaluations in the logs of real runs."""
    own = tmp_path / "own.py"
    own.write_text("def some(images, samples):\n    scores = images.mean((1, 2, 3))\n    scores[0] *= float('nan')\n")
    own.write_text(own.read_text() + "    return scores\n")
    updates, steps, evaluations = set[str](), set[str](), set[str]()
    for name, settings in RUNS.items():
        run = tmp_path / name
        more = [setting.format(file=own) for setting in settings]
        make_trainer("evaluation.every=1", "adapter.ema.decay=0.5", *more, f"output={run}").train()
        for line in (run / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            updates |= row.keys()
            steps |= {key for step in row["steps"] for key in step}
        evaluations |= {key for line in (run / "evaluations.jsonl").open() for key in json.loads(line)}
    return updates, steps, evaluations


def test_every_figure_of_a_run_is_explained(rows: tuple[set[str], set[str], set[str]]):
    updates, steps, evaluations = rows
    general = {re.sub(r"_(identity|prompt|look)(?=_std$|$)", "_KEY", key) for key in updates}
    assert general | IN_TROUBLE == explained(UPDATES)
    (described,) = re.findall(r"^\| `steps` \| (.*?) \|", UPDATES, re.MULTILINE)
    assert {re.sub(r"^(prompt|identity)_pull$", "pull", key) for key in steps} <= set(
        re.findall(r"`(\w+)`", described)
    )
    metrics = {"oracle_identity", "oracle_prompt", "joint_success"}
    plain = {key for key in evaluations if not key.endswith("_ema")}
    assert {re.sub(r"^\w+_reward$", "KEY_reward", key) for key in plain - metrics} <= explained(EVALUATIONS)
    assert plain < evaluations  # the moving average was there


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_are_those_of_the_code(name: str):
    """python tests/method_figures.py --write; coordinates may differ in their last digits."""
    number = re.compile(r"-?\d+\.\d+")
    kept = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    now = drawn(name)
    assert number.sub("", now) == number.sub("", kept)
    ours, theirs = (list(map(float, number.findall(text))) for text in (now, kept))
    assert ours == pytest.approx(theirs, abs=0.05)


def test_the_lines_in_troubleshooting_are_those_of_the_program():
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(file.read_text(encoding="utf-8") for file in Path(customized_grpo.__file__).parent.rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)  # texts that go over several lines
    lines = re.findall(r"^\| `(.*?)` \| \[", page, re.MULTILINE)
    assert len(lines) == 9
    for line in lines:
        parts = re.split(r"\.\.\.|\d+%?|[():,=]|the (?:loss|identity reward)|joint_success", line)
        assert [part for part in map(str.strip, parts) if len(part) > 3 and part not in source] == [], line
