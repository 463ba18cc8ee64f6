"""Rewards of the user's own: finding them, making them, and everything that can go wrong in them."""

import json
import re
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import ConfigError, load_config
from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.errors import InputError, UsageError
from customized_grpo.files.user_code import OwnCodeError
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


def forgetful(images, samples):
    images.mean((1, 2, 3))


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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with a module as a file, and the same module in a package on the path."""
    (tmp_path / "scores.py").write_text(MODULE)
    package = tmp_path / "on_the_path" / "my_own_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scores.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "on_the_path")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_own_package")]:
        del sys.modules[name]


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
def test_a_class_gets_its_options_and_the_device():
    reward = make("scores.py:Scaled", factor=2.0)
    assert reward.reward.device == CPU
    assert torch.equal(reward(IMAGES, SAMPLES), 2 * IMAGES.mean((1, 2, 3)))
    assert make("scores.py:Scaled").reward.factor == 1
    assert make("scores.py:Deviceless", factor=3).reward.device is None


@pytest.mark.usefixtures("folder")
def test_a_remote_class_runs_while_images_are_generated():
    reward = make("scores.py:Asking")
    scorer = Scorer({"own": reward, "other": make("scores.py:Scaled")})
    assert [*scorer.remote] == ["own"]
    scorer.begin(IMAGES, SAMPLES)
    assert torch.equal(scorer.finish(IMAGES, SAMPLES)["own"], IMAGES.mean((1, 2, 3)))
    assert reward.last_error == "the server is asleep"
    with pytest.raises(AttributeError, match="unscored"):
        _ = reward.unscored


@pytest.mark.usefixtures("folder")
def test_a_score_keeps_no_gradient():
    reward = make("scores.py:Asking")
    reward(IMAGES.requires_grad_(), SAMPLES)
    IMAGES.requires_grad_(False)
    assert reward.differentiates is False


def test_a_file_may_have_the_name_of_a_library_and_does_not_replace_it(folder: Path):
    (folder / "json.py").write_text(MODULE)
    assert make("json.py:brightness")(IMAGES, SAMPLES).shape == (3,)
    import json as imported

    assert imported.dumps is json.dumps


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.py:score", {}, r"reward 'missing.py:score': no file missing.py; relative paths start from /.*"),
        ("scores.py:missing", {}, "scores.py has no function 'missing'; it has brightness, .*Scaled.*"),
        ("scores.py:number", {}, "scores.py has no function 'number'; it has brightness"),
        ("scores.py:", {}, "scores.py has no function ''"),
        (f"{'x' * 300}.py:score", {}, "no file xxx"),
        (":score", {}, "there is no module ''"),
        (".scores:score", {}, "there is no module '.scores'"),
        ("my_own_package..scores:score", {}, "there is no module"),
        ("scores.scores:score", {}, "there is no module 'scores.scores'"),
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
        ("builtins:int", {}, "the arguments of a built-in class are unknown; write your own"),
    ],
)
def test_a_reward_that_does_not_exist_is_reported_with_those_that_do(name: str, options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message) as error:
        make(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("column", r"reward 'mine' returned shape \(3, 3\) for 3 images; return \[N\]"),
        ("infinite", "reward 'mine' returned an infinity; return NaN"),
        ("listed", r"reward 'mine' returned list; return a tensor \[3\]"),
        ("forgetful", r"reward 'mine' returned NoneType; return a tensor \[3\]"),
    ],
)
def test_anything_but_one_score_per_image_is_refused(function: str, message: str):
    with pytest.raises(RewardError, match=message):
        Scorer({"mine": make(f"scores.py:{function}")}).finish(IMAGES, SAMPLES)


@pytest.mark.usefixtures("folder")
def test_integers_are_scores():
    assert Scorer({"mine": make("scores.py:whole_numbers")}).finish(IMAGES, SAMPLES)["mine"].tolist() == [1, 2, 3]


def test_a_name_without_a_colon_is_not_the_users_own():
    with pytest.raises(ConfigError, match=r"my_own_package.scores"):
        load_config("critters", ["rewards.mine.name=my_own_package.scores", "rewards.mine.role=identity"])


# --- the documentation -----------------------------------------------------------------------------------------------


def documented(language: str) -> str:
    """The only code block in this language under "A reward of your own"."""
    (section,) = re.findall(r"^## A reward of your own\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return block


def test_the_documented_reward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file and the settings exactly as documented."""
    monkeypatch.chdir(tmp_path)
    Path("scores.py").write_text(documented("python"))
    (tmp_path / "recipe.yaml").write_text(f"data:\n  train_samples: 8\n{documented('yaml')}")
    settings = load_config("recipe.yaml").trained()["sharpness"]
    assert (settings.role, settings.weight) == ("quality", 0.2)
    reward = settings.make(CPU)
    flat, checked = torch.full((1, 3, 32, 32), 0.5), (torch.arange(32)[:, None] + torch.arange(32)) % 2
    images = torch.cat([flat, checked.expand(1, 3, 32, 32).float(), IMAGES[:1]])
    scores = Scorer({"sharpness": reward}).finish(images, SAMPLES)["sharpness"]
    assert scores[0] == 0
    assert scores[1] == 1  # as sharp as a picture can be
    assert 0 < scores[2] < 1


def test_the_documented_reward_is_short():
    assert len(documented("python").splitlines()) <= 15


# --- exceptions of the user's code -----------------------------------------------------------------------------------


BROKEN = {
    "syntax": ("import torch\n\ndef f(:\n", "SyntaxError: invalid syntax ({file}, line 3); correct the code"),
    "indent": ("if True:\npass\n", "IndentationError: expected an indented block after 'if' .* ({file}, line 2); "),
    "bytes": ("x = 'a\0b'\n", "SyntaxError: source code string cannot contain null bytes; correct the code"),
    "package": (
        "import torch\nimport no_library.part\n",
        "ModuleNotFoundError: No module named 'no_library' ({file}, line 2); install no_library or correct the code",
    ),
    "name": (
        "from torch import no_name\n",
        "ImportError: cannot import name 'no_name' .* ({file}, line 1); ",
    ),
    "exception": ("def load():\n    return {{}}['a\\nb']\n\nload()\n", "KeyError: 'a.*b' ({file}, line 2); "),
    "silent": ("raise ValueError\n", "ValueError ({file}, line 1); "),
    "deep": ("import json\n\njson.loads('[')\n", "JSONDecodeError: Expecting value: .* ({file}, line 3); "),
    "exit": ("import sys\nsys.exit(3)\n", "SystemExit: 3 ({file}, line 2); "),
    "lines": ("raise RuntimeError('first\\nsecond')\n", "RuntimeError: first second ({file}, line 1); "),
}


def pattern(message: str, **values: Path) -> str:
    """A regular expression for a message in which only .* is special."""
    return ".*".join(re.escape(part) for part in message.format(**values).split(".*"))


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("by_name", [False, True])
def test_code_that_cannot_be_imported_is_one_line_with_its_place(kind: str, by_name: bool, folder: Path):
    text, message = BROKEN[kind]
    file = (folder / "on_the_path" / "my_own_package" if by_name else folder) / f"broken_{kind}.py"
    file.write_text(text.replace("{{", "{").replace("}}", "}"))
    where = f"my_own_package.broken_{kind}" if by_name else str(file)
    expected = pattern(f"reward '{where}:f'.*{where} cannot be imported: {message}", file=file)
    with pytest.raises(OwnCodeError, match=f"^{expected}") as error:
        make(f"{where}:f")
    assert isinstance(error.value, InputError)
    assert "\n" not in str(error.value)
    assert type(error.value.__cause__).__name__ == message.split(":")[0].split(" ")[0]
    assert not [name for name in sys.modules if f"broken_{kind}" in name]


def test_the_place_is_in_the_users_other_file_if_that_is_broken(folder: Path):
    package = folder / "on_the_path" / "my_own_package"
    (package / "helper.py").write_text("x = 1\nx = x / 0\n")
    (folder / "outer.py").write_text("import my_own_package.helper\n")
    with pytest.raises(OwnCodeError, match=rf"ZeroDivisionError: division by zero \({package}/helper\.py, line 2\)"):
        make("outer.py:f")


def test_a_file_that_cannot_be_read_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: SourceFileLoader, path: str) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(SourceFileLoader, "get_data", refuse)
    with pytest.raises(OwnCodeError, match=r"scores\.py cannot be imported: PermissionError: .*Permission denied"):
        make(f"{folder}/scores.py:brightness")


def test_a_class_that_cannot_be_made_is_one_line_with_its_place(tmp_path: Path):
    file = tmp_path / "scores.py"
    file.write_text("class Table:\n    def __init__(self, path):\n        open(path)\n")
    place = rf"No such file or directory: 'none\.csv' \({file}, line 3\); correct the code$"
    with pytest.raises(OwnCodeError, match=f"^reward '{file}:Table' cannot be made: FileNotFoundError: .*{place}"):
        make(f"{file}:Table", path="none.csv")


def test_an_exception_of_a_call_is_reported_with_its_place(tmp_path: Path):
    """In the user's file, also if a library raised it or wraps the function."""
    file = tmp_path / "scores.py"
    file.write_text("import torch\n@torch.no_grad()\ndef f(images, samples):\n    return torch.stack([])\n")
    message = rf"reward '{file}:f' raised RuntimeError: stack expects a non-empty TensorList \({file}, line 4\)"
    with pytest.raises(RewardError, match=f"^{message}$"):
        parse_reward(f"{file}:f").make(CPU)(IMAGES, SAMPLES)


def test_a_hanging_function_is_given_up(tmp_path: Path):
    file = tmp_path / "scores.py"
    file.write_text("import time\ndef slow(images, samples):\n    time.sleep(30)\n")
    with pytest.raises(RewardError, match=r"slow' has not answered for 0\.1 seconds; find out where it hangs"):
        parse_reward(f"{file}:slow timeout=0.1").make(CPU)(IMAGES, SAMPLES)


CARELESS = """
import numpy
import torch


def in_place(images, samples):
    images.mul_(255)
    return images.mean((1, 2, 3))


def through_numpy(images, samples):
    images.numpy()[:] = 0
    return torch.zeros(len(images))


def of_samples(images, samples):
    for sample in samples:
        sample.references[0].paste((255, 0, 0), (0, 0, 8, 8))
        sample.extra.clear()
    samples.clear()
    return images.mean((1, 2, 3))
"""


def mean(images: torch.Tensor, samples: Any) -> torch.Tensor:  # noqa: ARG001
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("function", ["in_place", "through_numpy", "of_samples"])
def test_what_a_function_changes_is_its_own_copy(function: str, tmp_path: Path):
    """Other rewards and the saved pictures have the same images and samples."""
    (tmp_path / "careless.py").write_text(CARELESS)
    images, samples = IMAGES.clone(), draw_samples(3, TEST_CRITTERS, 5)
    scores = Scorer({"mine": make(f"{tmp_path}/careless.py:{function}"), "brightness": mean})
    assert torch.equal(scores.finish(images, samples)["brightness"], IMAGES.mean((1, 2, 3)))
    assert torch.equal(images, IMAGES)
    assert samples == SAMPLES
    assert [sample.extra for sample in samples] == [sample.extra for sample in SAMPLES]


def test_scores_stay_when_a_reward_writes_the_next_ones_into_the_same_tensor():
    buffer = torch.zeros(3)

    def reused(images: torch.Tensor, samples: Any) -> torch.Tensor:  # noqa: ARG001 (the interface)
        return buffer.copy_(images.mean((1, 2, 3)))

    first, second = (score("reused", reused, images, SAMPLES) for images in (IMAGES, 1 - IMAGES))
    torch.testing.assert_close(first, 1 - second)


def test_a_reward_that_runs_out_of_memory_gets_halves():
    sizes = []

    def hungry(images: torch.Tensor, samples: Any) -> torch.Tensor:
        sizes.append(len(samples))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((1, 2, 3))

    assert torch.equal(score("hungry", hungry, IMAGES, SAMPLES), IMAGES.mean((1, 2, 3)))
    assert sizes == [3, 1, 2, 1, 1]
