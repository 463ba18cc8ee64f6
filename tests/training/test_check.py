"""`train --dry-run`: all that is wrong, a line each, before weights are loaded; notes on what cannot be known here."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from customized_grpo.algorithm import SHAPING_RULES
from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters import samples as critters
from customized_grpo.policies import diffusers_policy
from customized_grpo.rewards import encoder
from customized_grpo.training import rules
from customized_grpo.training.check import check_run
from program import TINY, Refusal, start

MakeConfig = Callable[..., RunConfig]
DINO = "facebook/dinov2-base is not in the hub's cache on this machine and could not be checked"


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch):
    for module in (diffusers_policy, encoder):
        monkeypatch.setattr(module, "load_part", lambda *_, **__: pytest.fail("weights were loaded"))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Four subjects, a prompt and a reference each, and no other views."""
    entries = []
    for number, sample in enumerate(critters.draw_samples(4, critters.TRAINING_CRITTERS, 0)):
        sample.reference_images()[0].resize((64, 64)).save(tmp_path / f"{number}.png")
        entries.append({"prompt": f"thing {number}", "image_paths": [f"{number}.png"], "subject": str(number)})
    (tmp_path / "list.json").write_text(json.dumps(entries))
    return tmp_path / "list.json"


def test_a_good_configuration_is_printed_with_the_size_of_its_adapter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    answer = start(("train", TINY, "adapter.targets=[to_q]", "adapter.rank=2", "--dry-run"), monkeypatch, capsys)
    assert answer.code == 0
    assert answer.error == "note: the adapter has 0.0 M weights\n"  # 4 layers of 2 x (64 + 64)
    assert answer.out.startswith("output: ")
    assert list(tmp_path.iterdir()) == []


def test_what_a_check_says_of_rules_is_what_the_rules_say():
    assert {name for name, rule in SHAPING_RULES.items() if rule.uses_calibration} == rules.CALIBRATED
    assert {name for name, rule in SHAPING_RULES.items() if rule.static_weights} == rules.STATIC
    assert {name for name, rule in SHAPING_RULES.items() if not rule.uses_weights} == rules.UNWEIGHTED


def test_a_recipe_for_a_gpu_can_be_checked_on_a_laptop(make_config: MakeConfig):
    check = check_run(make_config("device=cuda", "rewards.identity.device=cuda:1"), resume=False)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    finds = f"torch {torch.__version__} finds no CUDA device; use device=cpu"
    assert check.problems == []
    assert check.notes[0] == f"device cuda: {finds}, if you train on this machine"
    assert check.notes[-1] == f"reward dino: device cuda:1: {finds}"


def test_a_library_that_quantises_and_is_missing_is_a_note(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("customized_grpo.policies.libraries.find_spec", lambda _: None)
    for kind, library in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        check = check_run(make_config(f"model.quantise={kind}", "model.dtype=bfloat16"), resume=False)
        assert check.problems == []
        assert check.notes[0].startswith(f"model.quantise={kind} needs {library}; pip install ")
        assert check.notes[0].endswith(", if you train on this machine")


def test_a_calibration_is_read_and_what_it_lacks_is_a_note(make_config: MakeConfig, tmp_path: Path):
    file = tmp_path / "calibration.yaml"
    file.write_text("identity: {bad: 0.1, good: 0.8}")
    config = make_config("shaping.rule=joint", f"shaping.calibration={file}")
    check = check_run(config, resume=False)
    assert check.problems == []
    assert check.notes[-1] == "train measures the levels of rewards.prompt, on bad and on good pictures"
    file.write_text("identity: {bad: 0.8, good: 0.1}")
    (problem,) = check_run(config, resume=False).problems
    assert problem.startswith(f"{file}: rewards.identity: it cannot tell good pictures")
    assert not any("measures" in note for note in check_run(make_config(), resume=False).notes)


def test_models_on_the_hub_that_are_not_here_are_notes(make_config: MakeConfig):
    settings = ("model.path=some-owner/flux", "model.height=512", "rewards.identity.model=facebook/dinov2-base")
    check = check_run(make_config(*settings, "evaluation.metrics=[hpsv3, pickscore]"), resume=False)
    assert check.problems == []
    assert check.notes == [
        "some-owner/flux is not in the hub's cache on this machine: model and adapter could not be checked",
        f"reward dino: {DINO}",
        f"reward hpsv3: {DINO.replace('facebook/dinov2-base', 'MizzenAI/HPSv3')}",
        f"reward hpsv3: {DINO.replace('facebook/dinov2-base', 'Qwen/Qwen2-VL-7B-Instruct')}",
        f"reward pickscore: {DINO.replace('facebook/dinov2-base', 'yuvalkirstain/PickScore_v1')}",
    ]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("device=gpu", "no device is named 'gpu'; use cpu, cuda or cuda:1"),
        ("model.path=/nowhere", "no model in /nowhere; name a folder in the library's format, or a hub id"),
        ("model.path=nowhere", "nowhere is neither a folder here nor a hub id, which is written owner/name"),
        ("model.path={list}", "{list} is a file, and a model in one file is not read; name its folder"),
        ("model.path={tmp}", "{tmp} is not the kind of model needed here: it has no model_index.json"),
        ("model.path=models/flux", "models/flux is neither .* owner/name; the folder models has no flux"),
        ("model.height=30", "pictures of 32x30 pixels; this model needs multiples of 4"),
        (
            "adapter.targets=[to_q, nope]",
            "adapter.targets: 'nope' matches no linear layer of this model; name",
        ),
        ("adapter={{targets: [to_q], share_qkv: true}}", "adapter.share_qkv: .* has an adapter on to_q only"),
        ("data.source=missing.json", r"missing.json cannot be used, 1 problem:\n  no such file or directory"),
        ("data={{source: '{list}', held_out_share: 0}}", "leaves no held-out sample to evaluate on"),
        ("data={{source: '{list}', held_out_share: 1}}", "held_out_share = 1.0 must be in"),
        ("shaping={{rule: joint, calibration: missing.yaml}}", "missing.yaml cannot be read"),
        ("rewards.identity.model={tmp}", "{tmp} is not the kind of model needed here: it has no config.json"),
        ("rewards.prompt.model=./clip", "no model in ./clip; name a folder"),
        ("rewards.prompt={{name: hpsv3, base: '{tmp}'}}", "{tmp} is not the kind of model .* no config.json"),
        ("rewards.prompt={{name: pickscore, processor: '{tmp}'}}", "{tmp} .* it has no preprocessor_config.json"),
        ("rewards.prompt.name=scores.py:sharpness", "reward 'scores.py:sharpness': no file scores.py"),
        ("evaluation.metrics=[dino model=./dino]", "no model in ./dino; name a folder"),
    ],
)
def test_what_is_wrong_is_one_line(setting: str, problem: str, refused: Refusal, listed: Path):
    (refused.folder / "models").mkdir()
    places = {"tmp": refused.folder, "list": listed}
    message = refused("train", TINY, "evaluation.every=1", setting.format(**places), "--dry-run")
    assert re.search(problem.format(**places), message), message


def test_all_problems_are_reported_at_once(make_config: MakeConfig, listed: Path):
    config = make_config(
        *("adapter.targets=[nope]", "rewards.identity={name: dino, against: other_view, model: ./dino}"),
        *(f"data.source={listed}", "data.train_samples=null", "data.held_out_share=0.25", "tracking=[trackio]"),
    )
    Path(config.output).mkdir()
    (Path(config.output) / "config.yaml").touch()
    problems = check_run(config, resume=False).problems
    assert [problem.split(";")[0].split(" in ")[0][:40] for problem in problems] == [
        f"{config.output} exists"[:40],
        "tracking: trackio is not installed",
        "rewards.identity cannot score 3 of 3 training samples"[:40],
        "adapter.targets: 'nope' matches no linear layer"[:40],
        "no model",
    ]


def test_a_model_in_the_hubs_cache_is_checked(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided_checkpoint: Path
):
    """Its configurations are enough; the weights may still be missing."""
    found = lambda model, file: str(guided_checkpoint / file)  # noqa: ARG005, E731
    monkeypatch.setattr("customized_grpo.files.pretrained.try_to_load_from_cache", found)
    monkeypatch.setattr("customized_grpo.files.pretrained.hf_hub_download", found)
    check = check_run(make_config("model.path=owner/flux", "adapter.targets=[nope]"), resume=False)
    assert "'nope' matches no linear layer of this model" in check.problems[0]
    config = load_config(TINY, ["model.path=owner/flux", "adapter.rank=64", f"output={tmp_path / 'run'}"])
    assert check_run(config, resume=False).notes[0].endswith(" M weights")
