"""A comparison that is asked to stop stops its arms; an arm in training saves its update first."""

import os
import signal
import time
from pathlib import Path

from comparison_files import FILE, write
from forked_arms import start_comparison


def test_a_comparison_stops_its_arms_and_they_keep_what_they_saved(tmp_path: Path):
    file = write(tmp_path, overrides={**FILE["overrides"], "updates": 500, "save_every": 500}, test={"cases": 4})
    log, arms = tmp_path / "log.txt", tmp_path / "out" / "arms"
    process, until_all_have_ended = start_comparison(file, log, jobs=2)
    row, end = arms / "naive" / "seed-0" / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (row.exists() and row.stat().st_size):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, log.read_text()
    assert until_all_have_ended.poll(timeout=20)
    assert "of 3 runs are finished, and the others keep what they saved" in log.read_text().splitlines()[-1]
    assert log.read_text().endswith(f"in {tmp_path / 'out'}; the same command goes on\n")
    assert any((arms / "naive" / "seed-0" / "run" / "checkpoints").glob("step-*"))
