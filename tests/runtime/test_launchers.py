"""Started by torchrun, mpirun or srun: what works together, what is refused, what is said."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from customized_grpo.run.checkpoints import checkpoints_of
from customized_grpo.runtime import launchers
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.launchers import LaunchError
from program import TINY, Refusal


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(LaunchError, match=r"SLURM_STEP_NUM_TASKS=4, but this process knows of 1.*torchrun"):
        Processes("cpu")


def test_torchrun_without_patience_is_worth_a_note(monkeypatch: pytest.MonkeyPatch):
    for variable in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    assert launchers.notices() == []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    (note,) = launchers.notices()
    assert "30 s after SIGTERM" in note
    assert note.endswith("start it with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert launchers.notices() == []


def test_every_torchrun_line_of_ours_is_patient():
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "docs").rglob("*.yaml")]
    recipes = (root / "src" / "customized_grpo" / "recipes").glob("*.yaml")
    text = "\n".join(page.read_text(encoding="utf-8") for page in (*pages, *recipes))
    lines = [line for line in text.splitlines() if "torchrun --n" in line]
    assert len(lines) >= 6
    assert [line for line in lines if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 torchrun --" not in line] == []


@pytest.mark.slow
def test_torchrun_that_is_asked_to_stop_saves(tmp_path: Path):
    """With the options that docs/scaling.md shows; its own exit code is 1, whatever those of the processes are."""
    run, log = tmp_path / "run", tmp_path / "log"
    settings = ("device=cpu", "groups.prompts=2", "updates=500", f"output={run}")
    command = (*(sys.executable, "-m", "torch.distributed.run"), *("--standalone", "--nproc_per_node", "2"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    with log.open("w") as said:
        launcher = subprocess.Popen(
            (*command, "-m", "customized_grpo", "train", TINY, *settings), stdout=said, stderr=said, env=environment
        )
    while not (run / "metrics.jsonl").is_file():
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.05)
    launcher.terminate()
    assert launcher.wait(timeout=120) == 1
    (found,) = re.findall(r"SIGTERM: stopped after update (\d+); go on with", log.read_text())
    assert [path.name for path in checkpoints_of(run)] == [f"step-{int(found):05d}"]
    assert "note: torchrun kills" not in log.read_text()


@pytest.mark.parametrize(
    "command", ["demo", "generate", "evaluate", "compare", "probe", "report", "build-critters", "check-rewards"]
)
def test_commands_that_are_not_divided_are_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Refusal(tmp_path, monkeypatch, capsys)(command, "critters") == (
        "WORLD_SIZE=2, but only train is divided among processes: each would do all the work of "
        f"{command}, into the same files. Start one: customized-grpo {command} ..."
    )


def test_one_process_of_a_launcher_may_do_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "")
    launchers.check_alone("evaluate")
