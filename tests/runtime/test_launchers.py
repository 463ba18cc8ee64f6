"""Started by torchrun, mpirun or srun: what works, what is refused, what is noted."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import PartialState

from customized_grpo.files.adapter_places import checkpoints_of
from customized_grpo.runtime import launchers
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.launchers import LaunchError
from program import TINY, Refusal


def test_processes_that_are_not_connected_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(LaunchError, match=r"SLURM_STEP_NUM_TASKS=4, but this process knows of 1.*torchrun"):
        Processes("cpu")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [({"LOCAL_RANK": "0", "WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"), ({"LOCAL_RANK": "first"}, "'first'")],
)
def test_processes_that_cannot_be_connected_are_refused(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
):
    """A launcher's variables that are incomplete or wrong."""
    for variable in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    PartialState._reset_state()
    try:
        with pytest.raises(LaunchError, match=rf"cannot be connected \(.*{problem}.*\); start them with torchrun"):
            Processes("cpu")
    finally:
        PartialState._reset_state()


def test_torchrun_with_its_short_default_timeout_gets_a_note(monkeypatch: pytest.MonkeyPatch):
    for variable in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    assert launchers.notices() == []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    (note,) = launchers.notices()
    assert "30 s after SIGTERM" in note
    assert note.endswith("start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert launchers.notices() == []


def test_every_torchrun_command_in_the_documentation_sets_the_timeout():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "docs").rglob("*.yaml")]
    recipes = (root / "src" / "customized_grpo" / "recipes").glob("*.yaml")
    text = "\n".join(page.read_text(encoding="utf-8") for page in (*pages, *recipes))
    lines = [line for line in text.splitlines() if "torchrun --n" in line]
    assert len(lines) >= 6
    assert [line for line in lines if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 torchrun --" not in line] == []


@pytest.mark.slow
def test_torchrun_saves_when_asked_to_stop(tmp_path: Path):
    """With the options shown in docs/scaling.md. Its own exit code is 1, whatever those of its processes are."""
    run, log = tmp_path / "run", tmp_path / "log"
    settings = ("device=cpu", "groups.prompts=2", "updates=500", f"output={run}")
    command = (*(sys.executable, "-m", "torch.distributed.run"), *("--standalone", "--nproc_per_node", "2"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    with log.open("w") as output:
        launcher = subprocess.Popen(
            (*command, "-m", "customized_grpo", "train", TINY, *settings),
            stdout=output,
            stderr=output,
            env=environment,
        )
    while not (run / "metrics.jsonl").is_file():
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.05)
    launcher.terminate()
    assert launcher.wait(timeout=120) == 1
    (update,) = re.findall(r"SIGTERM: stopped after update (\d+); resume with", log.read_text())
    assert [path.name for path in checkpoints_of(run)] == [f"step-{int(update):05d}"]
    assert "note: torchrun kills" not in log.read_text()


@pytest.mark.parametrize(
    "command",
    ["demo", "generate", "evaluate", "compare", "probe", "report", "export", "build-critters", "check-rewards"],
)
def test_commands_that_cannot_be_divided_are_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Refusal(tmp_path, monkeypatch, capsys)(command, "critters") == (
        "WORLD_SIZE=2, but only train is divided among processes: each would do all the work of "
        f"{command} and write the same files. Start one process: customized-grpo {command} ..."
    )


def test_a_single_process_of_a_launcher_may_run_any_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "")
    monkeypatch.setenv("PMI_SIZE", "²")  # a digit to str.isdigit, but not to int
    launchers.check_alone("evaluate")
