"""Packages that add rewards, rules, layouts and families: that of docs/api.md, really installed, and broken ones."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from program import TINY

ROOT = Path(__file__).parents[1]
FAMILY = '\n[project.entry-points."customized_grpo.families"]\nToyPipeline = "toy_family:ToyPolicy"\n'
FEW = ("updates=2", "save_every=1", "evaluation.every=2", "data.held_out_samples=2")
LOOK = ("rewards.look.name=brightness", "rewards.look.role=quality", "rewards.look.weight=0.2")


def install(folder: Path, modules: dict[str, str], project: str) -> Path:
    """Install a package by pip into a new folder, which is returned. Uses no network."""
    source, site = folder / "source", folder / "site"
    source.mkdir(parents=True)
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    for name, text in modules.items():
        (source / f"{name}.py").write_text(text, encoding="utf-8")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, capture_output=True)
    return site


def example(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/api.md").read_text("utf-8"), re.DOTALL)[-1]


class Program:
    """The program in a process of its own, with packages in the folders `sites`."""

    def __init__(self, folder: Path, *sites: Path):
        paths = [*map(str, sites), str(ROOT / "src")]
        self.folder, self.environment = folder, os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "customized_grpo", *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def refuses(self, *arguments: object) -> str:
        answer = self(*arguments)
        assert (answer.returncode, "Traceback" in answer.stderr) == (2, False), answer.stderr
        return answer.stderr.partition("error: ")[2].rstrip("\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of docs/api.md with a model family in addition."""
    family = Path(__file__).with_name("toy_family.py").read_text("utf-8")
    modules = {"my_grpo": example("python"), "toy_family": family}
    named = '\n[tool.setuptools]\npy-modules = ["my_grpo", "toy_family"]\n'
    return install(tmp_path_factory.mktemp("package"), modules, example("toml") + FAMILY + named)


@pytest.fixture
def program(tmp_path: Path, site: Path) -> Program:
    return Program(tmp_path, site)


# --- a package that works --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_package_of_the_documentation_trains_resumes_and_is_recorded(program: Program, tmp_path: Path):
    pictures = tmp_path / "my_pictures"
    pictures.mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 90, 120)).save(pictures / f"{number}.png")
    lines = (f"{number}.png\ta critter on the beach" for number in range(8))
    (pictures / "prompts.tsv").write_text("\n".join(lines))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    data = ("data.source=tab_separated", f"data.root={pictures}", "data.held_out_share=.3")
    model = ("model.path=toy", "model.height=32", "model.width=32", "device=cpu", "model.dtype=float32")
    settings = (*data, *model, *LOOK, "rewards.look.target=0.5", "shaping.rule=soft_min", *FEW)
    shown = program(*shlex.split(example("sh").replace("\\\n", ""))[1:], "--dry-run")
    assert shown.returncode == 0, shown.stderr
    rewards = ("rewards.identity.model=critters", "rewards.prompt.model=critters")
    metrics = ("evaluation.metrics=[brightness target=0.1]",)
    answer = program("train", TINY, *settings, *rewards, *metrics, "--output", "run")
    assert answer.returncode == 0, answer.stderr
    assert "warning: " not in answer.stderr
    row, evaluation = (
        json.loads((tmp_path / "run" / name).read_text().splitlines()[-1])
        for name in ("metrics.jsonl", "evaluations.jsonl")
    )
    assert -0.5 <= row["reward_look"] <= 0
    assert row["gradient_norm"] > 0
    assert -0.9 <= evaluation["brightness target=0.1"] <= 0

    environment = tmp_path / "run" / "environment.json"
    recorded = json.loads(environment.read_text())
    assert recorded["plugins"] == {
        "reward brightness": "my-grpo 0.1.0",
        "shaping rule soft_min": "my-grpo 0.1.0",
        "model family ToyPipeline": "my-grpo 0.1.0",
        "data source tab_separated": "my-grpo 0.1.0",
    }
    recorded["plugins"]["shaping rule soft_min"] = "my-grpo 0.0.9"  # as if it had been updated since
    environment.write_text(json.dumps(recorded))
    answer = program("train", "run", "--resume", "updates=3")
    assert answer.returncode == 0, answer.stderr
    assert "the shaping rule soft_min is of my-grpo 0.1.0, and the run was last started with my-grpo 0.0.9" in (
        answer.stderr
    )


@pytest.mark.slow
def test_bad_settings_of_a_package_are_one_line_each(program: Program):
    assert program.refuses("train", TINY, *LOOK, "--dry-run") == (
        "rewards.look.target: is missing and has no default; set it"
    )
    assert program.refuses("train", TINY, *LOOK, "rewards.look.target=dark", "shaping.rule=soft_mni", "--dry-run") == (
        "rewards.look.target: input should be a valid number, unable to parse string as a number, not 'dark'\n"
        "shaping.rule: input should be 'sars', 'linear', 'raw_sum', 'min', 'max', 'harmonic', 'geometric', 'gdpo', "
        "'joint' or 'gated'; or a shaping rule of an installed package (soft_min), not 'soft_mni'"
    )
    assert program.refuses("train", TINY, *LOOK, "rewards.look.targte=1", "--dry-run").splitlines()[-1] == (
        "rewards.look.targte: unknown key; did you mean 'target'?"
    )
    assert "did you mean 'brightness'?" in program.refuses("train", TINY, "rewards.prompt.name=brightnes", "--dry-run")
    assert program.refuses("train", TINY, "data.source=tab_separated", "--dry-run") == (
        "data.root: data.source=tab_separated needs the folder of its files; add data.root=path/to/tab_separated"
    )


# --- packages that do not --------------------------------------------------------------------------------------------

BROKEN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "broken"
version = "2.0"
[project.entry-points."customized_grpo.rewards"]
dino = "broken:score"
plain = "broken:score"
absent = "broken:nothing"
[project.entry-points."customized_grpo.rules"]
soft_min = "broken:score"
median = "failing:RULE"
tie = "broken:score"
[project.entry-points."customized_grpo.sources"]
syncd = "broken:score"
[project.entry-points."customized_grpo.families"]
half = "broken:Half"
[tool.setuptools]
py-modules = ["broken", "failing"]
"""
MODULES = {
    "broken": "def score(images, samples): ...\n\n\nclass Half:\n    def load(self): ...\n",
    "failing": "import module_of_nobody\n",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("broken"), MODULES, BROKEN)


@pytest.fixture
def refuses(tmp_path: Path, site: Path, broken: Path) -> Iterator[Program]:
    program = Program(tmp_path, site, broken)
    yield program
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "rewards.identity.name=dino",
            "rewards.identity: the reward 'dino' is built in, and broken 2.0 registers another one of this name; "
            "uninstall that package, or rename its entry",
        ),
        (
            "shaping.rule=soft_min",
            "shaping.rule: the shaping rule 'soft_min' is registered by broken 2.0 and my-grpo 0.1.0; uninstall one "
            "of them",
        ),
        (
            "rewards.prompt=plain",
            "rewards.prompt: the reward 'plain' of broken 2.0 (broken:score) is a function; it must be a class "
            "derived from customized_grpo.rewards.RewardSettings; a function needs no entry point, name it as "
            "package.module:function",
        ),
        (
            "rewards.prompt=absent",
            "rewards.prompt: the reward 'absent' of broken 2.0 (broken:nothing) cannot be loaded: AttributeError: "
            "module 'broken' has no attribute 'nothing'",
        ),
        (
            "shaping.rule=median",
            "the shaping rule 'median' of broken 2.0 (failing:RULE) cannot be loaded: ModuleNotFoundError: No module "
            "named 'module_of_nobody' (.../failing.py, line 1); install module_of_nobody or correct the code",
        ),
        (
            "shaping.rule=tie",
            "the shaping rule 'tie' of broken 2.0 (broken:score) is a function; it must be a "
            "customized_grpo.shaping.Rule",
        ),
        (
            "data.source=syncd data.root=.",
            "data.source: the data source 'syncd' is built in, and broken 2.0 registers another one",
        ),
        (
            "model.family=half",
            "the model family 'half' of broken 2.0 (broken:Half) is the class Half; it must be a class with ",
        ),
    ],
)
def test_a_broken_package_is_named_with_what_is_wrong(refuses: Program, setting: str, message: str):
    others = () if "dino" in setting else ("rewards.identity=clip_i",)  # the recipe's, whose name is taken now
    said = refuses.refuses("train", TINY, *others, *setting.split(), "output=run", "--dry-run")
    assert re.sub(r"\(/[^ ]*/failing", "(.../failing", said).startswith(message), said
    assert "\n" not in said


@pytest.mark.slow
def test_a_package_that_is_not_used_does_not_matter(tmp_path: Path, broken: Path):
    answer = Program(tmp_path, broken)("train", TINY, "rewards.identity=clip_i", "output=run", "--dry-run")
    assert answer.returncode == 0, answer.stderr
    env = json.loads(Program(tmp_path, broken)("env").stdout)
    assert env["plugins"]["shaping rule median"] == "broken 2.0"
