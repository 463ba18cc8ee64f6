"""`compare`: equal terms, seeds as the unit, and a kill that nobody sees in the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison_files import FILE, write

from customized_grpo.compare.arm import run_arm
from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.runner import ComparisonError, collect, compare, describe, slots
from customized_grpo.compare.tables import write_report
from customized_grpo.config import ConfigError
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS


def problems(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        Comparison.read(write(folder, **changes))
    return [line.split(": ", 1)[1] for line in str(error.value).splitlines()]


# --- the file --------------------------------------------------------------------------------------------------------


def test_arms_are_a_few_lines_on_common_ground(tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, seeds=[3, 5]))
    naive, tuned = comparison.config("naive", 5), comparison.config("sars_tdw", 5)
    assert (naive.shaping.rule, naive.weighting.kind, naive.seed, naive.updates) == ("linear", "constant", 5, 3)
    different = {"shaping": naive.shaping, "weighting": naive.weighting, "output": naive.output}
    assert tuned.model_copy(update=different) == naive
    assert comparison.jobs == [(arm, seed) for seed in (3, 5) for arm in ("base", "naive", "sars_tdw")]


def test_an_arm_may_have_fewer_seeds(tmp_path: Path):
    arms = {**FILE["arms"], "extra": {"seeds": [0], "shaping.gamma": 0.2}}
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1], arms=arms))
    assert [seed for arm, seed in comparison.jobs if arm == "extra"] == [0]
    assert comparison.lines("extra") == {"shaping.gamma": 0.2}
    assert "extra                1 seeds, 18 images each   shaping.gamma=0.2" in describe(comparison)


def test_the_primary_question_is_answered_first(tmp_path: Path):
    arms = {"extra": {"shaping.gamma": 0.2}, **FILE["arms"]}
    jobs = Comparison.read(write(tmp_path, seeds=[0, 1], arms=arms)).jobs
    asked = [(arm, seed) for seed in (0, 1) for arm in ("base", "naive", "sars_tdw")]
    assert jobs == [*asked, ("extra", 0), ("extra", 1)]


def test_every_mistake_of_the_file_and_of_its_arms_is_said_at_once(tmp_path: Path):
    arms = {"naive": {"shaping.rul": "linear"}, "sars_tdw": {"optimizer.lr": -1}, "base": None}
    found = problems(tmp_path, arms=arms, primary={"arm": "sarstdw", "against": ["naive"]})
    assert found == [
        "arms.base: this name is taken or no name for a folder",
        "arms.naive: shaping.rul: unknown key; did you mean 'rule'?",
        "arms.sars_tdw: optimizer.lr: input should be greater than 0, not -1",
        "primary: no arm is named 'sarstdw'; arms: naive, sars_tdw, base",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [0]}, "seed: extra inputs are not permitted"),
        ({"seeds": []}, "seeds: tuple should have at least 1 item"),
        ({"seeds": 3}, "seeds: input should be a valid tuple, not 3; write a list such as [0, 1, 2]"),
        ({"arms": {**FILE["arms"], "few": {"seeds": 3}}}, "few: seeds: input should be a valid tuple, not 3; write a"),
        ({"arms": {**FILE["arms"], "few": {"seeds": []}}}, "arms.few: seeds: tuple should have at least 1 item"),
        ({"arms": {**FILE["arms"], "few": {"seeds": [-1]}}}, "arms.few: seeds.0: input should be greater than or"),
        ({"test": {"checkpoints": 4}}, "3 updates with save_every=1 leave 3 checkpoints, test.checkpoints asks for 4"),
        ({"arms": {**FILE["arms"], "long": {"updates": 9}}}, "different numbers of images while training (naive 18"),
        ({"arms": {**FILE["arms"], "wide": {"groups.size": 4}}}, "sars_tdw 18, wide 24); equal them"),
        ({"arms": {**FILE["arms"], "other": {"data.train_samples": 2}}}, "arms share their data"),
        ({"compare_on": ["pickscore"]}, "compare_on: pickscore is not tested; tested: dino, clip_t"),
    ],
)
def test_what_would_be_no_comparison_is_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    assert any(said in line for line in problems(tmp_path, **changes))


def test_plots_show_arms_that_there_are_under_names_for_files(tmp_path: Path):
    selections = {"a/b": ["naive"], "none": [], "some": ["base", "tdw", "naive", "naive"]}
    assert problems(tmp_path, front=["sars_tdw"], selections=selections) == [
        "front: one arm makes no line; name at least two, or leave `front` out",
        "selections: 'a/b' becomes part of a file's name; use letters, digits, _, - and .",
        "selections.none: it names no arm; name some, or leave it out",
        "selections.some: base is not trained and has neither weight nor curves; leave it out",
        "selections.some: no arm is named 'tdw'; arms: naive, sars_tdw",
        "selections.some: naive is named 2 times; name it once",
    ]
    arms = {"naive": {"optimizer.lr": -1}, "sars_tdw": None}
    assert len(problems(tmp_path, front=["naive", "tdw"], arms=arms)) == 2  # with all other mistakes


def test_plots_change_no_run(tmp_path: Path):
    plain = Comparison.read(write(tmp_path))
    shown = Comparison.read(write(tmp_path, front=["naive", "sars_tdw"], selections={"all": ["naive", "sars_tdw"]}))
    assert shown.jobs == plain.jobs
    assert all(shown.config(arm, seed) == plain.config(arm, seed) for arm, seed in plain.jobs)


def test_a_file_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no comparison in .*nothing\.yaml"):
        Comparison.read(tmp_path / "nothing.yaml")


# --- the runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison whose arms ran one after the other without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    comparison = Comparison.read(write(folder))
    for arm, seed in comparison.jobs:
        run_arm(comparison, arm, seed)
    write_report(comparison, collect(comparison))
    return comparison


def test_arms_share_base_cases_and_noise(whole: Comparison):
    """Before its first update every arm is the base: the same held-out figures, on the same cases."""
    results = collect(whole)
    starts = [results[arm][0]["held_out"][0] for arm in ("naive", "sars_tdw")]
    assert starts[0] == starts[1]
    assert [row["update"] for row in results["naive"][0]["held_out"]] == [0, 1, 2, 3]
    first = [results[arm][0]["updates"][0] for arm in ("naive", "sars_tdw")]
    assert first[0] == first[1]  # the same prompts and images; what is learnt from them differs
    assert results["naive"][0]["updates"][1] != results["sars_tdw"][0]["updates"][1]
    cases = [
        {json.loads(line)["sample"] for line in file.read_text().splitlines()}
        for file in whole.output.glob("arms/*/seed-0/test/*/rows.jsonl")
    ]
    assert len(cases) == 5  # the base once, two checkpoints of each arm
    assert all(each == cases[0] and len(each) == 4 for each in cases)


def test_an_arms_result_is_the_mean_of_its_last_checkpoints(whole: Comparison):
    folder = whole.folder("naive", 0)
    assert {path.name for path in (folder / "test").iterdir()} == {"step-00002", "step-00003"}
    scores = [
        json.loads(line)["scores"]["dino"]
        for file in folder.glob("test/*/rows.jsonl")
        for line in file.read_text().splitlines()
    ]
    result = collect(whole)["naive"][0]
    assert result["test"]["dino"] == pytest.approx(sum(scores) / len(scores))
    watched = [row["identity_reward"] for row in result["held_out"]]
    assert result["test"]["identity_reward_over_training"] == pytest.approx(sum(watched[1:]) / 3)
    assert collect(whole)["base"][0]["test"].keys() == {
        *("dino", "clip_t", "oracle_identity", "oracle_prompt", "joint_success")
    }
    assert (folder / "result.json").stat().st_size < 3000


def test_another_seed_is_tested_on_other_cases(tmp_path: Path, whole: Comparison):
    comparison = Comparison.read(write(tmp_path, seeds=[1]))
    run_arm(comparison, "base", 1)
    rows = (comparison.folder("base", 1) / "test" / "base" / "rows.jsonl").read_text()
    known = (whole.folder("base", 0) / "test" / "base" / "rows.jsonl").read_text()
    assert json.loads(rows.splitlines()[0])["subject"] != json.loads(known.splitlines()[0])["subject"]


def test_settings_can_be_chosen_without_a_look_at_test_cases(tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, test={"cases": 3, "split": "development"}))
    run_arm(comparison, "base", 0)
    rows = (comparison.folder("base", 0) / "test" / "base" / "rows.jsonl").read_text().splitlines()
    critters = [int(json.loads(row)["subject"].removeprefix("critter-")) for row in rows]
    assert len(critters) == 3
    assert all(critter in DEVELOPMENT_CRITTERS for critter in critters)


def test_a_finished_arm_is_not_run_again_and_another_one_not_mixed_in(whole: Comparison):
    before = {path: path.stat().st_mtime_ns for path in whole.folder("naive", 0).rglob("*.jsonl")}
    run_arm(whole, "naive", 0)
    assert {path: path.stat().st_mtime_ns for path in whole.folder("naive", 0).rglob("*.jsonl")} == before
    other = whole.model_copy(update={"overrides": {**whole.overrides, "optimizer.lr": 0.5}})
    with pytest.raises(ValueError, match="was begun with other settings"):
        run_arm(other, "naive", 0)


def test_killed_and_continued_it_writes_the_same_file(whole: Comparison, tmp_path: Path):
    """SIGKILL in the middle of an arm's training; its process goes too, and the next start repeats nothing."""
    file = write(tmp_path)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "customized_grpo", "compare", str(file), "--jobs", "1", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    training = output / "arms" / "naive" / "seed-0" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (training.exists() and training.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (output / "arms" / "base" / "seed-0" / "result.json").exists()
    assert not (output / "arms" / "naive" / "seed-0" / "result.json").exists()
    time.sleep(1.5)  # the arm notices within half a second
    stopped = training.read_text()
    time.sleep(1.0)
    assert training.read_text() == stopped
    base = (output / "arms" / "base" / "seed-0" / "result.json").stat().st_mtime_ns

    table = compare(file, output=None, jobs=2, device="cpu")
    assert (output / "arms" / "base" / "seed-0" / "result.json").stat().st_mtime_ns == base
    for name in ("comparison.json", "table.md"):
        assert (output / name).read_text() == (whole.output / name).read_text()
    for arm in ("naive", "sars_tdw"):
        files = [each.folder(arm, 0) / "result.json" for each in (whole, Comparison.read(file))]
        assert files[0].read_bytes() == files[1].read_bytes()
    figures, place = table.split("\n\nfiles: ")
    assert figures.strip() in (output / "table.md").read_text()
    assert place == f"{output}; as a page: customized-grpo report {output}"


def test_an_arm_that_fails_is_named_and_the_others_run(tmp_path: Path):
    """The encoder of one arm's reward does not exist."""
    arms = {"naive": {"rewards.identity.model": str(tmp_path / "none")}, "sars_tdw": None}
    file = write(tmp_path, arms=arms, overrides={**FILE["overrides"], "updates": 1}, test={"cases": 1})
    with pytest.raises(ComparisonError, match=r"failed: naive \(seed 0\); see .*log\.txt"):
        compare(file, output=None, jobs=2, device="cpu")
    assert "error: no model in" in (tmp_path / "out" / "arms" / "naive" / "seed-0" / "log.txt").read_text()
    assert {*collect(Comparison.read(file))} == {"base", "sars_tdw"}


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
        ("2,3,-1,4", None, None, "2 3"),  # CUDA stops at what is no device
        (None, "cuda:1", None, "1"),
        ("2,3", "cuda:1", 2, "3 3"),
    ],
)
def test_slots_are_gpus_that_the_user_left_us(
    visible: str | None, device: str | None, jobs: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    """Two GPUs. A child sees one of them alone, which it calls cuda."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = slots(jobs, device)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == expected.split()
    assert {slot.device for slot in found} == {"cuda"}


def test_the_example_of_the_documentation_is_a_comparison():
    comparison = Comparison.read(Path(__file__).parents[2] / "docs" / "examples" / "ablation.yaml")
    assert len(comparison.jobs) == 3 * 5
    rules = {arm: comparison.config(arm, 0).shaping.rule for arm in comparison.arms}
    kinds = {arm: comparison.config(arm, 0).weighting.kind for arm in comparison.arms}
    assert rules == {"naive": "linear", "sars": "sars", "tdw": "linear", "sars_tdw": "sars"}
    assert kinds == {"naive": "constant", "sars": "constant", "tdw": "tdw", "sars_tdw": "tdw"}


def test_the_published_experiment_is_a_comparison_and_its_rows_are_runs_of_it():
    folder = Path(__file__).parents[2] / "docs" / "results"
    experiment = Comparison.read(folder / "experiment.yaml", folder / "experiment")
    assert len(experiment.jobs) == 110
    finished = {(arm, seed): found for arm, runs in collect(experiment).items() for seed, found in runs.items()}
    assert len(finished) == len(list(experiment.output.rglob("result.json"))) > 0
    for (arm, seed), found in finished.items():
        assert (found["arm"], found["seed"]) == (arm, seed)
        updates = [] if arm == "base" else list(range(1, 251))
        assert [row["update"] for row in found["updates"]] == updates
    assert Comparison.read(folder / "tuning.yaml").jobs
