import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import ConfigError, load_config
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.scoring import RewardError, Scorer, score
from customized_grpo.rewards.settings import OwnFunctionSettings

CPU = torch.device("cpu")
DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"
SAMPLES = draw_samples(3, TEST_CRITTERS, 5)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

MODULE = """
import torch


def brightness(images, samples):
    return images.mean((1, 2, 3))


def whole_numbers(images, samples):
    return torch.tensor([1, 2, 3])


def column(images, samples):
    return images.mean((2, 3))


def infinite(images, samples):
    return torch.full((len(images),), torch.inf)


def listed(images, samples):
    return [0.5] * len(images)


class Scaled:
    def __init__(self, factor=1.0, device=None):
        self.factor, self.device = factor, device

    def __call__(self, images, samples):
        return self.factor * images.mean((1, 2, 3))


class Deviceless(Scaled):
    def __init__(self, factor):
        super().__init__(factor)


class Asking(Scaled):
    remote = True
    last_error = "the server is asleep"
    differentiates = None

    def __call__(self, images, samples):
        self.differentiates = torch.is_grad_enabled()
        return super().__call__(images, samples)


class Silent:
    pass


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of one's own as a file and, on the path, in a package; the working folder is where it lies."""
    (tmp_path / "scores.py").write_text(MODULE)
    package = tmp_path / "on_the_path" / "my_own_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scores.py").write_text(MODULE)
    (package / "broken.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path / "on_the_path")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str, **options: Any) -> Any:
    settings = parse_reward({"name": name, "options": options})
    assert isinstance(settings, OwnFunctionSettings)
    return settings.make(CPU)


@pytest.mark.parametrize("where", ["scores.py", "{folder}/scores.py", "my_own_package.scores"])
def test_a_function_is_found_in_a_file_or_a_package(folder: Path, where: str):
    reward = make(f"{where.format(folder=folder)}:brightness")
    assert torch.equal(reward(IMAGES, SAMPLES), IMAGES.mean((1, 2, 3)))


def test_a_file_is_found_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir("/")
    assert make("~/scores.py:brightness")(IMAGES, SAMPLES).shape == (3,)


@pytest.mark.usefixtures("folder")
def test_a_class_is_made_from_its_options_and_the_device():
    reward = make("scores.py:Scaled", factor=2.0)
    assert reward.reward.device == CPU
    assert torch.equal(reward(IMAGES, SAMPLES), 2 * IMAGES.mean((1, 2, 3)))
    assert make("scores.py:Scaled").reward.factor == 1
    assert make("scores.py:Deviceless", factor=3).reward.device is None


@pytest.mark.usefixtures("folder")
def test_a_remote_class_works_while_images_are_generated():
    reward = make("scores.py:Asking")
    scorer = Scorer({"own": reward, "other": make("scores.py:Scaled")})
    assert [*scorer.remote] == ["own"]
    scorer.begin(IMAGES, SAMPLES)
    assert torch.equal(scorer.finish(IMAGES, SAMPLES)["own"], IMAGES.mean((1, 2, 3)))
    assert reward.last_error == "the server is asleep"
    with pytest.raises(AttributeError, match="unscored"):
        _ = reward.unscored


@pytest.mark.usefixtures("folder")
def test_no_gradient_is_kept_of_a_score():
    reward = make("scores.py:Asking")
    reward(IMAGES.requires_grad_(), SAMPLES)
    IMAGES.requires_grad_(False)
    assert reward.differentiates is False


def test_a_file_may_be_called_like_a_library(folder: Path):
    """And leaves it alone."""
    (folder / "json.py").write_text(MODULE)
    assert make("json.py:brightness")(IMAGES, SAMPLES).shape == (3,)
    import json as imported

    assert imported.dumps is json.dumps


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("missing.py:score", {}, r"reward 'missing.py': no such file; the path starts from /.*"),
        ("scores.py:missing", {}, "scores.py has no function 'missing'; it has brightness, .*Scaled.*"),
        ("scores.py:number", {}, "scores.py has no function 'number'; it has brightness"),
        ("scores.py:", {}, "scores.py has no function ''"),
        (
            "not_there:score",
            {},
            "there is no module 'not_there'; write package.module:function or path/to/file.py:fun",
        ),
        ("my_own_package.not_there:score", {}, "there is no module 'my_own_package.not_there'"),
        ("my_own_package.scores:missing", {}, "my_own_package.scores has no function 'missing'"),
        ("scores.py:brightness", {"factor": 2}, r"a function takes no options \(factor\); make it a class"),
        ("scores.py:Scaled", {"factr": 2}, r"options: .*'factr'; the class takes \(factor=1.0, device=None\)"),
        ("scores.py:Deviceless", {}, r"options: .*'factor'; the class takes \(factor\)"),
        ("scores.py:Silent", {}, r"Silent has no __call__\(self, images, samples\)"),
    ],
)
def test_what_is_missing_is_said_with_what_there_is(name: str, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_what_the_module_itself_lacks_is_not_taken_for_the_module():
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_missing"):
        make("my_own_package.broken:score")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("column", r"reward 'mine' returned shape \(3, 3\) for 3 images; return \[N\]"),
        ("infinite", "reward 'mine' returned an infinity; return NaN"),
        ("listed", r"reward 'mine' returned list; return a tensor \[3\]"),
    ],
)
def test_what_is_no_score_is_refused_with_what_it_was(function: str, words: str):
    with pytest.raises(RewardError, match=words):
        Scorer({"mine": make(f"scores.py:{function}")}).finish(IMAGES, SAMPLES)


@pytest.mark.usefixtures("folder")
def test_whole_numbers_are_scores():
    assert Scorer({"mine": make("scores.py:whole_numbers")}).finish(IMAGES, SAMPLES)["mine"].tolist() == [1, 2, 3]


def test_a_name_without_a_colon_is_no_function_of_ones_own():
    with pytest.raises(ConfigError, match=r"my_own_package.scores"):
        load_config("critters", ["rewards.mine.name=my_own_package.scores", "rewards.mine.role=identity"])


# --- what the documentation shows ------------------------------------------------------------------------------------


def shown(language: str) -> str:
    """The one block of code in that language under "A reward of your own"."""
    (section,) = re.findall(r"^## A reward of your own\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return block


def test_the_reward_of_ones_own_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a whole recipe's part: the file and the settings as they are shown."""
    monkeypatch.chdir(tmp_path)
    Path("scores.py").write_text(shown("python"))
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train_samples: 8\n{shown('yaml')}")
    settings = load_config("recipe.yaml").trained()["sharpness"]
    assert (settings.role, settings.weight) == ("quality", 0.2)
    reward = settings.make(CPU)
    flat, checked = torch.full((1, 3, 32, 32), 0.5), (torch.arange(32)[:, None] + torch.arange(32)) % 2
    images = torch.cat([flat, checked.expand(1, 3, 32, 32).float(), IMAGES[:1]])
    scores = Scorer({"sharpness": reward}).finish(images, SAMPLES)["sharpness"]
    assert scores[0] == 0
    assert scores[1] == 1  # as sharp as a picture can be
    assert 0 < scores[2] < 1


def test_the_reward_of_ones_own_in_the_documentation_is_short():
    assert len(shown("python").splitlines()) <= 15


# --- what goes wrong inside ------------------------------------------------------------------------------------------


def test_what_a_function_raises_is_told_with_its_place(tmp_path: Path):
    file = tmp_path / "scores.py"
    file.write_text("def broken(images, samples):\n    return 1 / 0\n")
    said = rf"reward '{file}:broken' raised ZeroDivisionError: division by zero \({file}, line 2\)"
    with pytest.raises(RewardError, match=said):
        parse_reward(f"{file}:broken").make(CPU)(IMAGES, SAMPLES)


def test_a_function_that_hangs_is_given_up(tmp_path: Path):
    file = tmp_path / "scores.py"
    file.write_text("import time\ndef slow(images, samples):\n    time.sleep(30)\n")
    with pytest.raises(RewardError, match=r"slow' has not answered for 0\.1 seconds; see where it hangs"):
        parse_reward(f"{file}:slow timeout=0.1").make(CPU)(IMAGES, SAMPLES)


def test_where_memory_runs_out_a_reward_gets_halves():
    seen = []

    def hungry(images: torch.Tensor, samples: Any) -> torch.Tensor:
        seen.append(len(samples))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((1, 2, 3))

    assert torch.equal(score("hungry", hungry, IMAGES, SAMPLES), IMAGES.mean((1, 2, 3)))
    assert seen == [3, 1, 2, 1, 1]
