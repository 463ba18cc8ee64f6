import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.calibration.file import CalibrationError, check_calibration, read_calibration
from customized_grpo.calibration.known_pictures import ROWS, Cases
from customized_grpo.config import load_config
from customized_grpo.rewards.by_name import REWARDS
from customized_grpo.rewards.settings import OracleSettings
from program import Answer, start

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`customized-grpo check-rewards` as a user starts it, in this process."""
    return lambda *arguments: start(("check-rewards", *arguments), monkeypatch, capsys)


def test_critters_with_the_shipped_encoders_and_every_reward_by_name(run: Callable[..., Answer], tmp_path: Path):
    """The generator is never read: model.path does not exist."""
    names = [name for name, kind in REWARDS.items() if kind.encoder or issubclass(kind, OracleSettings)]
    every = [option for name in [*names, "dino against=other_view"] for option in ("--metric", name)]
    where = ("model.path=/no/such", "model.height=32", "model.width=32", "--device", "cpu")
    answer = run(TINY, *where, *every, "--cases", 32, "--output", tmp_path / "new" / "folder")
    assert answer.code == 0, answer.error
    file = tmp_path / "new" / "folder" / "check_rewards.json"
    calibration = file.with_name("calibration.yaml")
    assert answer.out.endswith(f"\n\nfigures: {file}\ncalibration: {calibration}\n")
    told = json.loads(file.read_text())
    rewards = told["rewards"]
    assert (told["data"], told["cases"], told["subjects"]) == ("critters", 32, 32)
    assert {*rewards} == {*names, "dino against=other_view"}
    for label, reward in rewards.items():
        assert {*reward["rows"]} == {*ROWS, "faithful"}
        assert reward["rows"]["faithful"] == reward["rows"]["right_prompt"]
        for figures in reward["rows"].values():
            assert (figures["scored"], figures["unscored"], figures["missing"]) == (32, 0, 0)
            assert figures["low"] <= figures["mean"] <= figures["high"]
            assert reward["floor"] <= figures["min"] <= figures["mean"] <= figures["max"] <= reward["ceiling"]
        assert told["correlation"][label][label] == pytest.approx(1)

    def mean(label: str, row: str) -> float:
        return rewards[label]["rows"][row]["mean"]

    assert mean("dino", "copy") == pytest.approx(1, abs=1e-5)
    assert 0.6 < mean("dino", "faithful") < 0.9
    assert mean("dino", "other_subject") < 0.45
    assert mean("dino", "wrong_prompt") == mean("dino", "right_prompt")  # identity does not read
    assert mean("dino against=other_view", "other_view") == pytest.approx(1, abs=1e-5)
    assert mean("copy_paste", "copy") == pytest.approx(1, abs=1e-4)
    assert mean("clip_t", "right_prompt") > mean("clip_t", "wrong_prompt") + 0.3
    assert [mean("joint_success", row) for row in ROWS] == [0, 0, 0, 1, 0]
    assert rewards["clip_t"]["right_above_wrong_prompt"]["mean"] > 0.97
    assert rewards["dino"]["subject_above_other"]["mean"] > 0.97
    assert rewards["dino"]["copy_above_honest"] == {"mean": 1, "low": 1, "high": 1, "pairs": 32}
    copying = [line for line in told["findings"] if "copying will pay" in line]
    assert [line.split(":")[0] for line in copying] == ["dino", "clip_i"]
    assert copying[0].startswith("dino: copying the reference scores higher (1.00) than another picture")
    assert copying[0].endswith("compare with another view: rewards.identity.against=other_view")
    # The CLIP of critters was trained on prompts, which do not tell one critter from another.
    assert [line.split(":")[0] for line in told["findings"] if "cannot tell" in line] == ["clip_i"]
    known = read_calibration(calibration)
    assert {key: each.bad.mean for key, each in known.items()} == {
        "identity": pytest.approx(mean("dino", "other_subject"), abs=1e-5),
        "prompt": pytest.approx(mean("clip_t", "wrong_prompt"), abs=1e-5),
    }
    assert known["identity"].good.mean == pytest.approx(mean("dino", "other_view"), abs=1e-5)
    assert known["prompt"].good.mean == pytest.approx(mean("clip_t", "right_prompt"), abs=1e-5)
    assert check_calibration(known, load_config(TINY), calibration) == known
    table = answer.out.partition("Calibration: ")[2].partition("\n\n")[0]
    assert re.search(
        r"\n  rewards.identity  bad   .*\]  +other subjects\n +good  .*\]  +other views\n +gap   0\.\d{3}\n", table
    )
    assert max(map(len, table.splitlines())) < 80
    assert told["notes"] == []
    for line in (*told["findings"], *rewards):
        assert line[:40] in answer.out


def test_without_output_nothing_is_written_and_the_answer_is_reproducible(
    run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first, second = (run(TINY, "evaluation.metrics=[]", "--cases", 6) for _ in range(2))
    assert first.code == 0, first.error
    assert first.out == second.out
    assert first.out.startswith("6 cases of critters, 6 subjects.")
    assert list(tmp_path.iterdir()) == []


def test_a_custom_reward_sees_pictures_of_the_generated_size(run: Callable[..., Answer], tmp_path: Path):
    """A reward from a file; three cases of five pictures, four at a time."""
    seen = tmp_path / "seen.txt"
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def words(images, samples):\n"
        f"    print(tuple(images.shape), file=open({str(seen)!r}, 'a'))\n"
        "    return torch.tensor([float(len(sample.prompt)) for sample in samples])\n"
    )
    settings = (f"rewards.prompt.name={file}:words", "model.width=48", "model.height=40", "groups.rollout_batch=4")
    answer = run(TINY, *settings, "evaluation.metrics=[]", "--cases", 3)
    assert answer.code == 0, answer.error
    assert seen.read_text().splitlines() == ["(4, 3, 40, 48)"] * 3 + ["(3, 3, 40, 48)"]
    assert f"\n{file}:words (rewards.prompt, measures prompt)\n" in answer.out


def test_photographs_with_the_required_fields_only(
    run: Callable[..., Answer], photographs: Callable[..., Cases], tmp_path: Path
):
    photographs(a=(None, 0), b=(None, 0), c=(None, 0))
    (tmp_path / "calibration.yaml").touch()  # of an earlier check
    settings = (f"data.source={tmp_path / 'list.json'}", "data.train_samples=null")
    answer = run(TINY, *settings, "--metric", "copy_paste", "--output", tmp_path)
    assert answer.code == 0, answer.error
    assert "\n  rewards.prompt    bad   -\n                    good  -\n" in answer.out
    assert "rewards.identity, rewards.prompt: the data does not tell;\n  `train` measures it on pictures" in answer.out
    assert answer.out.endswith(f"\nfigures: {tmp_path / 'check_rewards.json'}\n")
    assert not (tmp_path / "calibration.yaml").exists()
    assert answer.out.count("no such picture") == 2 * 3  # three rows each of dino and clip_t
    assert answer.out.count("no picture could be scored") == 4  # copy_paste, and the oracles know critters only
    assert "- joint_success: 12 of 12 pictures could not be scored" in answer.out
    assert "What could not be checked:\n- 6 of 6 samples have no other view" in answer.out
    assert "\n- 6 of 6 samples have no class_word" in answer.out


def test_dreambench(run: Callable[..., Answer], dreambench: Path, tmp_path: Path):
    """Real photographs with their class words and two other views each."""
    words = dict(
        line.split(",")
        for line in (dreambench / "prompts_and_classes.txt").read_text().splitlines()
        if line.count(",") == 1 and (dreambench / line.split(",")[0]).is_dir()
    )
    assert len(words) == 30
    entries = []
    for subject in ("backpack", "cat", "cat2", "dog", "dog2", "teapot"):
        views = sorted(f"{subject}/{file.name}" for file in (dreambench / subject).iterdir())[:3]
        prompt = f"a {words[subject]} in the snow"
        entries.append(
            {"prompt": prompt, "image_paths": views[:1], "other_views": views[1:], "class_word": words[subject]}
        )
    file = tmp_path / "list.json"
    file.write_text(json.dumps(entries))
    answer = run(
        *(TINY, f"data.source={file}", f"data.root={dreambench}", "data.train_samples=null", "evaluation.metrics=[]"),
        *("--metric", "dino against=other_view", "--metric", "copy_paste", "--output", tmp_path),
    )
    assert answer.code == 0, answer.error
    told = json.loads((tmp_path / "check_rewards.json").read_text())
    assert (told["cases"], told["subjects"], told["notes"]) == (6, 6, [])
    for reward in told["rewards"].values():
        assert "faithful" not in reward["rows"]
        assert all(figures["scored"] == 6 for figures in reward["rows"].values())
        assert reward["rows"]["other_view"]["spread"] > 0.001
    dino = told["rewards"]["dino"]["rows"]
    assert dino["copy"]["min"] > 0.99
    assert dino["other_view"]["mean"] < 0.95
    assert told["rewards"]["clip_t"]["right_above_wrong_prompt"]["pairs"] == 6
    assert "the built-in encoder has only seen critters" in told["findings"][0]


def test_a_reward_that_cannot_tell_good_from_bad_is_a_finding_and_training_refuses_its_file(
    run: Callable[..., Answer], tmp_path: Path
):
    (tmp_path / "mine.py").write_text("def mean(images, samples):\n    return images.mean(dim=(1, 2, 3))\n")
    settings = (f"rewards.identity.name={tmp_path / 'mine.py'}:mean", "evaluation.metrics=[]")
    answer = run(TINY, *settings, "--cases", 12, "--output", tmp_path)
    (finding,) = (
        line
        for line in json.loads((tmp_path / "check_rewards.json").read_text())["findings"]
        if "training refuses to calibrate with it" in line
    )
    assert finding.startswith("rewards.identity: cannot tell good pictures (other views: 0.")
    assert finding[:60] in answer.out
    with pytest.raises(CalibrationError, match=r"rewards\.identity: it cannot tell good pictures"):
        read_calibration(tmp_path / "calibration.yaml")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--metric", "dyno"], "no reward is named 'dyno'; did you mean 'dino'"),
        (["--metric", "dino agianst=other_view"], "agianst"),
        (["rewards.identity.model=/no/such"], "no model in /no/such"),
        (["optimizer.lrr=1"], "optimizer.lrr: unknown key; did you mean 'lr'?"),
        (["data.source=/no/such.json"], "/no/such.json cannot be used"),
        (["--device", "gpu"], "no device is named 'gpu'; use cpu, cuda or cuda:1"),
    ],
)
def test_what_a_user_gets_wrong_is_an_error_message(arguments: list[str], complaint: str, run: Callable[..., Answer]):
    answer = run(TINY, "--cases", 2, *arguments)
    assert answer.code == 2
    (message,) = re.findall("^error: (.*)", answer.error, re.MULTILINE)
    assert complaint in message


def test_help_answers_without_heavy_libraries():
    script = """
import sys
from typer.testing import CliRunner
from customized_grpo.cli import app
answer = CliRunner().invoke(app, ["check-rewards", "--help"])
assert answer.exit_code == 0 and "--metric" in answer.output, answer.output
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
