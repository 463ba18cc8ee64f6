"""What `import customized_grpo` offers: the names, types, errors and behaviour that docs/api.md promises."""

import re
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import customized_grpo
from customized_grpo import InputError, Run, RunConfig, RunError, Sample, rewards, shaping, train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/api.md").read_text("utf-8")


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_public_names():
    """A name that is added here is promised: docs/api.md."""
    assert customized_grpo.__all__ == [
        *("InputError", "Policy", "Run", "RunConfig", "RunError", "Sample", "__version__"),
        *("rewards", "shaping", "train"),
    ]
    assert rewards.__all__ == ["Measures", "Name", "Reward", "RewardSettings", "build", "names", "score"]
    assert shaping.__name__ == "customized_grpo.algorithm"
    assert {"step_advantages", "TimeAwareWeights", "Rule", "ScoredGroups", "sigma_schedule"} <= {*shaping.__all__}
    for module in (customized_grpo, rewards, shaping):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert dir(customized_grpo) == customized_grpo.__all__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = getattr(customized_grpo, "trian")  # noqa: B009 (pyright would find it)


def test_the_page_lists_the_public_names():
    table = PAGE.partition("## What is public")[2].partition("##")[0]
    listed = {name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`([\w.]+)`", row)}
    assert listed >= {*customized_grpo.__all__, *rewards.__all__}


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert customized_grpo.__version__ == project["version"]


def test_importing_the_package_imports_nothing_else_and_it_is_typed():
    code = "import sys, customized_grpo; dir(customized_grpo); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert not {"torch", "pydantic", "numpy", "diffusers"} & loaded
    assert {name for name in loaded if name.startswith("customized_grpo")} == {"customized_grpo"}
    assert Path(customized_grpo.__file__).with_name("py.typed").is_file()


# --- train -----------------------------------------------------------------------------------------------------------


def weights(run: Run) -> bytes:
    return (run.adapter / "pytorch_lora_weights.safetensors").read_bytes()


def test_training_twice_in_one_process_gives_the_same_adapter(make_config: Callable[..., RunConfig], tmp_path: Path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    rows: list[Any] = []
    config = make_config("updates=2", "evaluation.every=2", "keep_best=joint_success")
    first = train(config, output=tmp_path / "first", on_update=rows.append)
    second = train(config, output=str(tmp_path / "second"))
    assert weights(first) == weights(second)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (first.path, first.config.output) == (tmp_path / "first", str(tmp_path / "first"))
    assert [row["update"] for row in first.updates] == [row["update"] for row in rows] == [1, 2]
    assert [row["update"] for row in first.evaluations] == [0, 2]
    assert first.figures.keys() == {
        *("identity_reward", "prompt_reward", "oracle_identity", "oracle_prompt", "joint_success")
    }
    assert first.figures["joint_success"] == first.evaluations[-1]["joint_success"]
    assert first.best is not None
    assert (first.best / "pytorch_lora_weights.safetensors").is_file()


def test_a_run_goes_on_in_python_as_on_the_command_line(make_config: Callable[..., RunConfig], tmp_path: Path):
    whole = train(make_config("updates=3", "save_every=1"), output=tmp_path / "whole")
    run = train(make_config("updates=2", "save_every=1"))
    longer = RunConfig.from_recipe(run.path, "updates=3")
    assert weights(train(longer, resume=True)) == weights(whole)
    assert run.figures == {}
    assert run.best is None


def test_advice_comes_as_warnings_and_nothing_else_does(make_config: Callable[..., RunConfig]):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(make_config("updates=0", "shaping.rule=min", "weighting.kind=constant", "shaping.gamma=.6"))
    ours = [str(each.message) for each in caught if "customized_grpo" not in each.filename]
    assert 'the rule "min" has no bonus: shaping.gamma has no effect' in ours


def test_errors_are_exceptions(make_config: Callable[..., RunConfig], tmp_path: Path):
    with pytest.raises(InputError, match=r"^updates: .*\noptimizer\.lr: .*") as caught:
        RunConfig.from_recipe("critters", "optimizer.lr=fast", "updates=-1")
    assert isinstance(caught.value, ValueError)
    config = make_config("updates=0")
    with pytest.raises(InputError, match="seed"):
        config.with_settings(("seed", -1))
    with pytest.raises(InputError, match="blank"):
        train(config, output=" ")
    run = train(config)
    with pytest.raises(InputError, match="exists; continue that run"):
        train(config)
    assert train(config.with_settings("updates=1"), resume=True).path == run.path

    (tmp_path / "bad.py").write_text("def score(images, samples):\n    return images.mean() / 0 + 'x'\n")
    with pytest.raises(RunError, match=r"bad\.py:score"):
        train(make_config(f"rewards.prompt={tmp_path / 'bad.py'}:score"), output=tmp_path / "bad")


def test_an_exception_of_the_callback_ends_the_run_which_can_go_on(
    make_config: Callable[..., RunConfig], tmp_path: Path
):
    def fail(row: Any) -> None:
        raise KeyError(row["update"])

    config = make_config("updates=2", "save_every=1")
    with pytest.raises(KeyError):
        train(config, on_update=fail)
    assert len(train(config, resume=True).updates) == 2
    assert (tmp_path / "run" / "adapter").is_dir()


def test_control_c_saves_the_update_and_is_a_keyboard_interrupt(make_config: Callable[..., RunConfig]):
    config = make_config("updates=3")
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        train(config, on_update=lambda _: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rows: list[Any] = []
    train(config, resume=True, on_update=rows.append)
    assert [row["update"] for row in rows] == [2, 3]


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_a_reward_scores_pictures_of_any_size(samples: list[Sample]):
    reward = rewards.build("clip_t model=critters")
    pictures = [sample.other_view_images()[0] for sample in samples[:3]]
    scores = rewards.score(reward, pictures, samples[:3])
    pixels = torch.stack([torch.tensor(np.asarray(picture) / 255).float().permute(2, 0, 1) for picture in pictures])
    torch.testing.assert_close(scores, reward(pixels, samples[:3]))
    torch.testing.assert_close(rewards.score(reward, pixels, samples[:3]), scores)
    double = pictures[0].resize((64, 64), Image.Resampling.NEAREST)
    torch.testing.assert_close(rewards.score(reward, [pictures[0], double], samples[0])[:1], scores[:1])
    assert rewards.score(reward, [], samples[0]).shape == (0,)
    pixels[1, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match="1 image not scored: NaN or infinities in the pixels"):
        assert rewards.score(reward, pixels, samples[:3]).isnan().tolist() == [False, True, False]


def test_what_cannot_be_scored_is_refused(samples: list[Sample], tmp_path: Path):
    def score(images: torch.Tensor, samples: Any) -> torch.Tensor:  # noqa: ARG001
        return images.mean((1, 2, 3))

    with pytest.raises(InputError, match="1 picture and 2 samples"):
        rewards.score(score, [Image.new("RGB", (8, 8))], samples[:2])
    with pytest.raises(InputError, match="check the path"):
        rewards.score(score, [tmp_path / "none.png"], samples[0])
    for wrong, problem in (
        (torch.zeros(1, 1), r"returned shape \(1, 1\) for 1 image"),
        (torch.full((1,), torch.inf), "returned an infinity"),
        (0.5, "returned float; return a tensor"),
    ):
        returning: Any = lambda *_, wrong=wrong: wrong  # noqa: E731
        with pytest.raises(RunError, match=problem):
            rewards.score(returning, [Image.new("RGB", (8, 8))], samples[0])
    for line, message in (
        ("clipt", "no reward is named 'clipt'; did you mean 'clip_t'"),
        ("dino against=x", "'reference' or 'other_view'"),
        ("dino model=/nowhere", "no model in /nowhere"),
        ("no.py:f", "no file no.py"),
    ):
        with pytest.raises(InputError, match=message):
            rewards.build(line)
    with pytest.raises(InputError, match="no device is named 'gpu'"):
        rewards.build("clip_t model=critters", device="gpu")


def test_the_usual_checkpoint_of_a_reward_is_not_the_built_in_one():
    with pytest.raises(InputError, match=r"openai/clip-vit-base-patch32"):
        rewards.build("clip_t")  # which is not on this machine; tests are offline


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_ten_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    assert len(code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    shown = capsys.readouterr().out.splitlines()
    assert float(shown[0]) == names["run"].updates[0]["reward_prompt"]
    assert shown[2].startswith("runs/api/adapter 0.")
    assert shown[3].startswith("tensor([")
    assert shown[4].startswith("tensor([0.7000, ")
