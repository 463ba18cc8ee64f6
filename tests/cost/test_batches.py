"""`groups.batch: auto`: as many images per pass as fit, the same in rollout and update, and again when resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from customized_grpo.commands.dry_run import check_training
from customized_grpo.commands.plan import plan
from customized_grpo.commands.train import run_training
from customized_grpo.config import CONFIG, RunConfig, load_config
from customized_grpo.cost.batches import Choice, at_batch, choose, evened, settled, with_batch
from customized_grpo.cost.estimate import estimate
from program import TINY
from runs import SMALL

MakeConfig = Callable[..., RunConfig]
AUTO = "groups.batch=auto"


def test_passes_are_of_about_equal_size():
    assert evened(64, 24) == 22  # 22 + 22 + 20, not 24 + 24 + 16
    assert evened(96, 96) == 96
    assert evened(96, 40) == 32
    assert evened(7, 1) == 1


def test_planned_memory_of_any_batch_is_that_of_measuring_it(make_config: MakeConfig):
    config = make_config()
    for batch in (2, 7):
        expected = estimate(with_batch(config, batch))
        assert at_batch(config, batch, 1, 1).peak == pytest.approx(expected.peak, rel=1e-6)
        assert at_batch(config, batch, 1, 1).flops == pytest.approx(expected.flops, rel=1e-6)


def test_the_largest_batch_that_fits_is_chosen(make_config: MakeConfig):
    """Free memory is what 5 images need by plan and 7 % more; 12 images then go in passes of 4."""
    config = make_config("groups.prompts=2", "groups.size=6")
    free = round(at_batch(config, 5, 1, 1).peak / 0.93) + 10
    assert choose(config, free).batch == 4
    assert choose(config, 10**12).batch == 12
    tight = choose(config, 1000)
    assert tight.batch == 1
    assert "does not fit" in str(tight)


def test_without_a_card_the_figure_is_that_of_the_benchmark(make_config: MakeConfig):
    config = make_config("groups.prompts=8", "groups.size=8", AUTO)
    chosen, choice = settled(config, resume=False)
    assert (chosen.groups.rollout_batch, chosen.groups.update_batch) == (22, 22)
    assert str(choice) == "groups.batch=auto: 22 images per pass, as larger ones are not faster on cpu"
    assert settled(make_config(), resume=False) == (make_config(), None)


def test_plan_and_a_dry_run_say_what_will_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = [AUTO, "groups.prompts=8", "groups.size=8", f"output={tmp_path / 'run'}"]
    lines = [*plan(TINY, settings, references=1, processes=1, utilisation=0.3)]
    at = lines.index("groups.batch=auto: 22 images per pass, as larger ones are not faster on cpu")
    assert lines[at + 1].startswith("  16 GB: 64 per pass, 0.")
    assert "  activations of 22 images in rollout and evaluation, 22 in the update" in lines
    check_training(load_config(TINY, settings), resume=False)
    assert "note: groups.batch=auto: 22 images per pass" in capsys.readouterr().err
    elsewhere = load_config(TINY, [*settings, "device=cuda"])
    check_training(elsewhere, resume=False)
    assert "chosen from the card's free memory when training starts" in capsys.readouterr().err


def test_the_run_keeps_what_was_chosen_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings = [*SMALL, AUTO, f"output={tmp_path / 'run'}"]
    run_training(load_config(TINY, [*settings, "updates=1"]), resume=False)
    assert "note: groups.batch=auto: " in capsys.readouterr().err
    groups = yaml.safe_load((tmp_path / "run" / CONFIG).read_text())["groups"]
    assert groups["rollout_batch"] == groups["update_batch"] < 64
    monkeypatch.setattr("customized_grpo.cost.batches.choose", lambda *_, **__: Choice(1, "as less is free now"))
    resumed, choice = settled(load_config(TINY, settings), resume=True)
    assert resumed.groups.rollout_batch == resumed.groups.update_batch == groups["rollout_batch"]
    assert str(choice).endswith("as the run began")
    check_training(load_config(TINY, settings), resume=True)
    assert "per pass, as the run began" in capsys.readouterr().err
