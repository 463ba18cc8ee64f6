"""docs/extending.md: its examples are short, do what they say, and train together once they are installed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from customized_grpo import Sample
from customized_grpo.algorithm import ScoredGroups
from program import TINY
from test_plugins import Program, install

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
(PROJECT,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(MODULES[name], names)
    return names


def test_the_examples_are_short():
    assert set(MODULES) == {"my_reward", "my_rule", "my_layout", "my_family"}
    assert all(len(text.splitlines()) < 30 for text in MODULES.values())


def test_the_reward_compares_mean_colours():
    reference = Image.new("RGB", (8, 8), (255, 0, 0))
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0] = 1.0  # red, as the reference; the second one is black
    scores = run("my_reward")["palette"](images, [Sample("a", "a", "p", references=(reference,))] * 2)
    assert scores.tolist() == pytest.approx([0.0, -1.0])


def test_the_rule_lowers_what_is_good_at_one_only():
    advantages = {"prompt": torch.tensor([[1.0, 1.0, -2.0]]), "identity": torch.tensor([[1.0, -1.0, 0.0]])}
    weights = {name: torch.full((1, 1, 1), 0.5) for name in advantages}
    groups = ScoredGroups(advantages, advantages, weights, {name: name for name in advantages})
    # .5 + .5; .5 - .5 - 2/4; -1 + 0 - 2/4
    assert run("my_rule")["RULE"].combine(groups)[0, 0].tolist() == pytest.approx([1.0, -0.5, -1.5])


def albums(folder: Path) -> Path:
    for name in ("rex", "tom", "mug"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (32, 32), (60 * number, 90, len(name) * 50)).save(folder / name / f"{number}.png")
        (folder / name / "prompts.txt").write_text("a critter on the beach\na critter in the snow\n")
    return folder


def test_the_layout_reads_albums(tmp_path: Path):
    samples = run("my_layout")["read_albums"](albums(tmp_path / "pictures"))
    assert [sample.id for sample in samples] == ["mug/0", "mug/1", "rex/0", "rex/1", "tom/0", "tom/1"]
    assert [path.name for path in samples[3].references + samples[3].other_views] == ["1.png", "0.png", "2.png"]
    assert samples[3].prompt == "a critter in the snow"


@pytest.mark.slow
def test_all_of_them_train_together(tmp_path: Path):
    program = Program(tmp_path, install(tmp_path / "package", MODULES, PROJECT))
    (tmp_path / "my_reward.py").write_text(MODULES["my_reward"], encoding="utf-8")
    reward = [f"rewards.palette.{setting}" for setting in ("name=my_reward.py:palette", "role=quality", "weight=0.2")]
    settings = ("shaping.rule=even", "data.source=albums", f"data.root={albums(tmp_path / 'pictures')}", *reward)
    few = ("data.held_out_samples=2", "evaluation.every=1", "evaluation.metrics=[]", "data.train_samples=null")
    built_in = [f"rewards.{key}.model=critters" for key in ("identity", "prompt")]
    answer = program("train", TINY, "model.family=grey", *settings, *few, *built_in, "--output", "run")
    assert answer.returncode == 0, answer.stderr
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert -1.8 <= row["reward_palette"] < 0
    assert row["gradient_norm"] > 0
    plugins = json.loads((tmp_path / "run" / "environment.json").read_text())["plugins"]
    assert set(plugins) == {"shaping rule even", "model family grey", "data source albums"}
