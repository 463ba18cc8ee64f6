"""`compare`: arms on equal terms, seeds as the unit, and a kill that leaves no trace in the result."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_files import FILE, result, write
from forked_arms import run_comparison, start_comparison

from customized_grpo.compare import runner, tables
from customized_grpo.compare.arm import run_arm
from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.results import collect
from customized_grpo.compare.runner import compare, describe, report, slots
from customized_grpo.config import ConfigError
from customized_grpo.critters.samples import DEVELOPMENT_CRITTERS
from customized_grpo.errors import InputError, UsageError
from customized_grpo.files.json_text import JsonError


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
    assert "extra                1 seed, 18 images each   shaping.gamma=0.2" in describe(comparison)


def test_the_primary_question_is_answered_first(tmp_path: Path):
    arms = {"extra": {"shaping.gamma": 0.2}, **FILE["arms"]}
    jobs = Comparison.read(write(tmp_path, seeds=[0, 1], arms=arms)).jobs
    asked = [(arm, seed) for seed in (0, 1) for arm in ("base", "naive", "sars_tdw")]
    assert jobs == [*asked, ("extra", 0), ("extra", 1)]


def test_every_mistake_in_the_file_and_its_arms_is_reported_at_once(tmp_path: Path):
    arms = {"naive": {"shaping.rul": "linear"}, "sars_tdw": {"optimizer.lr": -1}, "base": None, "../up": None}
    found = problems(tmp_path, arms=arms, primary={"arm": "sarstdw", "against": ["naive"]})
    assert found == [
        "arms.base: this name is taken; choose another name",
        "arms.naive: shaping.rul: unknown key; did you mean 'rule'?",
        "arms.sars_tdw: optimizer.lr: input should be greater than 0, not -1",
        "arms.../up: this is not a name for a folder; choose another name",
        "primary: no arm is named 'sarstdw'; arms: naive, sars_tdw, base, ../up",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "seed: extra inputs are not permitted"),
        ({"seeds": 3}, "seeds: input should be a valid tuple, not 3; write a list such as [0, 1, 2]"),
        ({"arms": {**FILE["arms"], "few": {"seeds": 3}}}, "few: seeds: input should be a valid tuple, not 3; write a"),
        ({"arms": {**FILE["arms"], "few": {"seeds": []}}}, "arms.few: seeds: tuple should have at least 1 item"),
        (
            {"test": {"checkpoints": 4}},
            "3 updates with save_every=1 leave 3 checkpoints, but test.checkpoints asks for 4",
        ),
        ({"arms": {**FILE["arms"], "long": {"updates": 9}}}, "different numbers of images while training (naive 18"),
        ({"arms": {**FILE["arms"], "wide": {"groups.size": 4}}}, "sars_tdw 18, wide 24); make them equal"),
        (
            {"arms": {**FILE["arms"], "other": {"data.train_samples": 2}}},
            "arms.other: all arms share their data; move",
        ),
        ({"compare_on": ["pickscore"]}, "compare_on: pickscore is not tested; tested: dino, clip_t"),
        (
            {
                "arms": {**FILE["arms"], "dyed": {"rewards.identity.model": "critters-dye"}},
                "compare_on": ["identity_reward_over_training"],
            },
            "compare_on: identity_reward_over_training is not the same reward in all arms; choose one of",
        ),
        (
            {"time_to": {"joint_sucess": 0.5}},
            "time_to: joint_sucess is not evaluated while an arm trains; evaluated:",
        ),
        (
            {"primary": {**FILE["primary"], "against": ["naive", "sars_tdw"]}},
            "primary: sars_tdw cannot be compared with itself",
        ),
    ],
)
def test_a_file_that_does_not_compare_on_equal_terms_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    assert any(message in line for line in problems(tmp_path, **changes))


def test_plots_name_arms_that_exist_and_get_names_that_files_can_have(tmp_path: Path):
    selections = {"a/b": ["naive"], "none": [], "some": ["base", "tdw", "naive", "naive"]}
    assert problems(tmp_path, front=["sars_tdw"], selections=selections) == [
        "front: a line needs at least two arms; name more, or leave `front` out",
        "selections: 'a/b' becomes part of a file name; use letters, digits, _, - and .",
        "selections.none: the list of arms is empty; name some, or leave it out",
        "selections.some: base is not trained, so it has no weight and no curves; leave it out",
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


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing.yaml", "No such file or directory"), ("folder", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_named(name: str, reason: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    message = f"^{tmp_path / name} cannot be read: {reason}$"
    with pytest.raises(ConfigError, match=message):
        Comparison.read(tmp_path / name)


# --- the runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison whose arms ran one after the other without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    comparison = Comparison.read(write(folder))
    for arm, seed in comparison.jobs:
        run_arm(comparison, arm, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "write_plots", lambda *_: None)
        tables.write_report(comparison, collect(comparison))
    return comparison


def test_arms_share_base_cases_and_noise(finished: Comparison):
    """Before its first update every arm is the base: the same held-out figures, on the same cases."""
    results = collect(finished)
    starts = [results[arm][0]["held_out"][0] for arm in ("naive", "sars_tdw")]
    assert starts[0] == starts[1]
    assert [row["update"] for row in results["naive"][0]["held_out"]] == [0, 1, 2, 3]
    first = [results[arm][0]["updates"][0] for arm in ("naive", "sars_tdw")]
    assert first[0] == first[1]  # the same prompts and images; what the arms learn from them differs
    assert results["naive"][0]["updates"][1] != results["sars_tdw"][0]["updates"][1]
    cases = [
        {json.loads(line)["sample"] for line in file.read_text().splitlines()}
        for file in finished.output.glob("arms/*/seed-0/test/*/rows.jsonl")
    ]
    assert len(cases) == 5  # the base once, two checkpoints of each arm
    assert all(of_file == cases[0] and len(of_file) == 4 for of_file in cases)


def test_an_arms_result_is_the_mean_of_its_last_checkpoints(finished: Comparison):
    folder = finished.folder("naive", 0)
    assert {path.name for path in (folder / "test").iterdir()} == {"step-00002", "step-00003"}
    scores = [
        json.loads(line)["scores"]["dino"]
        for file in folder.glob("test/*/rows.jsonl")
        for line in file.read_text().splitlines()
    ]
    result = collect(finished)["naive"][0]
    assert result["test"]["dino"] == pytest.approx(sum(scores) / len(scores))
    rewards = [row["identity_reward"] for row in result["held_out"]]
    assert result["test"]["identity_reward_over_training"] == pytest.approx(sum(rewards[1:]) / 3)
    assert collect(finished)["base"][0]["test"].keys() == {
        *("dino", "clip_t", "oracle_identity", "oracle_prompt", "joint_success")
    }
    assert (folder / "result.json").stat().st_size < 3000


def test_another_seed_is_tested_on_other_cases(tmp_path: Path, finished: Comparison):
    comparison = Comparison.read(write(tmp_path, seeds=[1]))
    run_arm(comparison, "base", 1)
    rows = (comparison.folder("base", 1) / "test" / "base" / "rows.jsonl").read_text()
    known = (finished.folder("base", 0) / "test" / "base" / "rows.jsonl").read_text()
    assert json.loads(rows.splitlines()[0])["subject"] != json.loads(known.splitlines()[0])["subject"]


def test_settings_can_be_chosen_without_looking_at_test_cases(tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, test={"cases": 3, "split": "development"}))
    run_arm(comparison, "base", 0)
    rows = (comparison.folder("base", 0) / "test" / "base" / "rows.jsonl").read_text().splitlines()
    critters = [int(json.loads(row)["subject"].removeprefix("critter-")) for row in rows]
    assert len(critters) == 3
    assert all(critter in DEVELOPMENT_CRITTERS for critter in critters)


def test_a_finished_arm_is_not_run_again_and_not_mixed_with_another(finished: Comparison):
    before = {path: path.stat().st_mtime_ns for path in finished.folder("naive", 0).rglob("*.jsonl")}
    run_arm(finished, "naive", 0)
    assert {path: path.stat().st_mtime_ns for path in finished.folder("naive", 0).rglob("*.jsonl")} == before
    other = finished.model_copy(update={"overrides": {**finished.overrides, "optimizer.lr": 0.5}})
    with pytest.raises(UsageError, match=r"was started with other settings, .* delete that folder to run"):
        run_arm(other, "naive", 0)


def test_killed_and_continued_it_writes_the_same_file(finished: Comparison, tmp_path: Path):
    """SIGKILL in the middle of an arm's training; its process ends too, and the next start repeats nothing."""
    file, log = write(tmp_path), tmp_path / "log.txt"
    killed, until_all_have_ended = start_comparison(file, log, jobs=1, killed_by="naive")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert until_all_have_ended.poll(timeout=50)  # the arm would go on for a minute
    with pytest.raises(EOFError):
        until_all_have_ended.recv()
    base, naive = (tmp_path / "out" / "arms" / arm / "seed-0" for arm in ("base", "naive"))
    assert len((naive / "run" / "metrics.jsonl").read_text().split("\n")) == 2  # one row
    assert not (naive / "result.json").exists()
    written = (base / "result.json").stat().st_mtime_ns

    assert run_comparison(file, log, jobs=2) == 0
    assert (base / "result.json").stat().st_mtime_ns == written
    for name in ("comparison.json", "table.md", *(f"arms/{arm}/seed-0/result.json" for arm in ("naive", "sars_tdw"))):
        assert (tmp_path / "out" / name).read_bytes() == (finished.output / name).read_bytes()
    table = (finished.output / "table.md").read_text()
    place = f"files: {tmp_path / 'out'}; as a page: customized-grpo report {tmp_path / 'out'}"
    assert f"{table}\n{place}\n" in log.read_text()


def test_an_arm_that_fails_is_named_and_the_others_run(tmp_path: Path):
    """The reward of one arm cannot score what it gets."""
    (tmp_path / "mine.py").write_text("def score(images, samples):\n    raise ValueError('no such picture')\n")
    arms = {"naive": {"rewards.identity.name": f"{tmp_path / 'mine.py'}:score"}, "sars_tdw": None}
    overrides = {**FILE["overrides"], "updates": 1, "evaluation.every": 0}
    primary = {**FILE["primary"], "metric": "clip_t"}
    file = write(tmp_path, arms=arms, overrides=overrides, primary=primary, compare_on=[], test={"cases": 1})
    log = tmp_path / "log.txt"
    assert run_comparison(file, log, jobs=2) == 1
    arm_log = tmp_path / "out" / "arms" / "naive" / "seed-0" / "log.txt"
    message = f"failed: naive (seed 0); see {arm_log}. Fix this, then run the same command again"
    assert log.read_text().split("\n")[-2] == message
    assert "ValueError: no such picture" in arm_log.read_text()
    assert {*collect(Comparison.read(file))} == {"base", "sars_tdw"}


def test_an_arm_is_a_process_that_reports_damaged_files_in_one_line(finished: Comparison, tmp_path: Path):
    """The command that `compare` really starts. The result was cut off in the middle of a write."""
    shutil.copytree(finished.folder("base", 0), tmp_path / "out" / "arms" / "base" / "seed-0")
    result_file = tmp_path / "out" / "arms" / "base" / "seed-0" / "result.json"
    result_file.write_bytes(result_file.read_bytes()[:100])
    file = write(tmp_path)
    started = runner._start(Comparison.read(file), file, "base", 0, slots(1, "cpu")[0])
    assert started.process.wait() == 1
    started.log.close()
    assert runner._last_line(Comparison.read(file), started).startswith(f"error: {result_file} is not JSON: EOF while")
    log = (result_file.parent / "log.txt").read_text()
    assert "Traceback" not in log


# --- damaged files ---------------------------------------------------------------------------------------------------


def edited(**changes: Any) -> str:
    return json.dumps({**result(0.5), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited()[:50], "is not JSON: EOF while parsing"),
        ("[]", ": input should be a valid dictionary or instance of _Result"),
        (edited(test={"dino": "0.5"}), ": test.dino: input should be a valid number"),
        (edited(updates=[{"reward_identity": 0.5}]), ": updates.0.update: field required"),
        (edited(held_out=[{"update": 0, "dino": None}]), ": held_out.0.dino: input should be a valid number"),
        (edited(warnings=[{"update": 3}]), ": warnings.0.kind: field required"),
    ],
)
def test_a_damaged_result_is_reported_before_anything_runs(text: str, message: str, tmp_path: Path):
    file = write(tmp_path)
    damaged = tmp_path / "out" / "arms" / "naive" / "seed-0" / "result.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text(text)
    for command in (
        lambda: compare(file, output=None, jobs=1, device="cpu"),
        lambda: report(file, output=None),
    ):
        with pytest.raises(JsonError) as error:
            command()
        assert str(error.value).startswith(f"{damaged}{' ' if message.startswith('is') else ''}{message}")
        assert str(error.value).endswith("; restore the file, or delete it and run the comparison again")
        assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["arms", "naive", "seed-0", "result.json"]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_number(file: Path) -> None:
    file.write_text(file.read_text().replace('"update": 2', '"update": "two"'))


def without_rows(file: Path) -> None:
    file.write_text("[1]\n")


def remove_checkpoint(file: Path) -> None:
    shutil.rmtree(file)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("arm.yaml", cut_in_half, r"was started with other settings, or its arm.yaml is damaged; delete that folder"),
        (
            "run/evaluations.jsonl",
            without_number,
            r"evaluations.jsonl.*update.*; restore",
        ),
        ("run/metrics.jsonl", without_rows, r"metrics.jsonl.*; restore"),
        (
            "run/checkpoints/step-00003",
            remove_checkpoint,
            r"run has 1 of the 2 checkpoints to test .*; delete .*naive",
        ),
    ],
)
def test_an_arm_whose_files_are_damaged_says_so(
    name: str, damage: Callable[[Path], None], message: str, finished: Comparison, tmp_path: Path
):
    comparison = Comparison.read(write(tmp_path))
    folder = comparison.folder("naive", 0)
    shutil.copytree(finished.folder("naive", 0), folder, ignore=shutil.ignore_patterns("result.json"))
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00001")
    damage(folder / name)
    with pytest.raises(InputError, match=message) as error:
        run_arm(comparison, "naive", 0)
    assert "\n" not in str(error.value)


# --- examples and published files ----------------------------------------------------------------------------------


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
