"""Before `compare` starts: where arms run, and what they lack."""

import os
from pathlib import Path

import pytest
import torch
from comparison_files import FILE, write

from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.runner import compare, slots
from customized_grpo.config import ConfigError
from customized_grpo.measure.request import EvaluationRequest


def test_slots_share_the_machine_and_do_not_change_results():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert len(slots(None, "cpu")) == cores
    for jobs in (1, 3):
        assert len(slots(jobs, "cpu")) == jobs
        assert all(slot.environment == {"OMP_NUM_THREADS": "1"} for slot in slots(jobs, "cpu"))


@pytest.mark.parametrize(
    ("visible", "device", "jobs", "expected"),
    [
        (None, None, None, "0 1"),
        ("2,3", None, None, "2 3"),
        ("2,3", "cuda", 3, "2 3 2"),
        (" GPU-5a, GPU-7f ", "cuda", None, "GPU-5a GPU-7f"),
        ("2,3,-1,4", None, None, "2 3"),  # CUDA stops at the first invalid one
        (None, "cuda:1", None, "1"),
        ("2,3", "cuda:1", 2, "3 3"),
    ],
)
def test_slots_are_the_gpus_that_the_user_allows(
    visible: str | None, device: str | None, jobs: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    """Two GPUs. Each arm sees one of them, and calls it cuda."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = slots(jobs, device)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == expected.split()
    assert {slot.device for slot in found} == {"cuda"}


def test_what_an_arm_lacks_is_said_before_anything_runs(tmp_path: Path):
    """Each arm is checked as `train --dry-run` checks a run. A problem that all arms share is listed once."""
    none = tmp_path / "none"
    arms = {
        "naive": {"rewards.identity.model": str(none)},
        "sars_tdw": None,
        "joint": {"shaping.rule": "joint", "shaping.calibration": str(tmp_path / "calibration.yaml")},
    }
    with pytest.raises(ConfigError) as error:
        compare(write(tmp_path, arms=arms, compare_on=["clip_t"]), output=None, jobs=1, device="cpu")
    own = [f"arms.naive: no model in {none}", f"arms.joint: {tmp_path / 'calibration.yaml'}"]
    assert [line[: len(start)] for line, start in zip(str(error.value).splitlines(), own, strict=True)] == own

    overrides = {**FILE["overrides"], "rewards.prompt.model": str(none)}
    with pytest.raises(ConfigError) as error:
        compare(write(tmp_path, overrides=overrides), output=None, jobs=1, device="cpu")
    assert str(error.value).startswith(f"no model in {none}")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_name_means_one_model_in_all_arms(tmp_path: Path):
    """Two arms are rewarded by encoders of their own: each is measured by both, if the file asks for that."""
    both = ["dino model=critters", "dino model=critters-dye"]
    changes = {
        "primary": {**FILE["primary"], "metric": "clip_t"},
        "overrides": {**FILE["overrides"], "evaluation.metrics": both},
        "arms": {**FILE["arms"], "dyed": {"rewards.identity.model": "critters-dye"}},
    }
    with pytest.raises(ConfigError, match="compare_on: dino has another model in another arm; name one that all"):
        Comparison.read(write(tmp_path, **changes))
    comparison = Comparison.read(write(tmp_path, **changes, compare_on=[both[0], "clip_t"]))
    for arm in ("base", *comparison.arms):
        tested = EvaluationRequest(comparison.config(arm, 0), in_full=comparison.in_full).all_metrics()
        assert set(tested) == {*both, "clip_t"}
    assert comparison.rewarded("dyed") == {"identity": both[1], "prompt": "clip_t"}
    assert Comparison.read(write(tmp_path)).in_full == frozenset()
