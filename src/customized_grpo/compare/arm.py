"""One arm with one seed, in a process of its own: train, test the last checkpoints, write result.json.

    python -m customized_grpo.compare.arm PARENT_PROCESS COMPARISON_FILE OUTPUT ARM SEED [DEVICE]

It goes on wherever an earlier process was stopped, and stops when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from customized_grpo.compare.comparison import BASE, OVER_TRAINING, Comparison
from customized_grpo.config import RunConfig, dump_config
from customized_grpo.errors import InputError, RunError, UsageError
from customized_grpo.files.durable import make_folder, write_text
from customized_grpo.measure.evaluate import evaluate
from customized_grpo.measure.request import EvaluationRequest
from customized_grpo.measure.rows import mean_scores
from customized_grpo.run.checkpoints import FINAL, checkpoints_of
from customized_grpo.run.environment import commit
from customized_grpo.run.logs import read_log
from customized_grpo.training.assemble import assemble

RESULT, ARM_CONFIG = "result.json", "arm.yaml"
# What is kept of every update; the rest stays in the run's own files.
KEPT = ("update", "reward_identity", "reward_prompt", "both_good", "conflict_excess", "both_bad", "correlation")
FRESH = 1000  # added to the seed of an arm's test cases: `demo` and `evaluate` show those of seed 0
DIGITS = 5  # of the kept figures, so that a result is small enough to be committed


def run_arm(comparison: Comparison, arm: str, seed: int, device: str | None = None) -> dict[str, Any]:
    """The arm's result, from its folder where it is finished; its folder must belong to the same settings."""
    folder, config = comparison.folder(arm, seed), comparison.config(arm, seed, device)
    make_folder(folder)
    _claim(folder, config)
    if (folder / RESULT).exists():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if arm == BASE:
        adapters: list[Path | None] = [None]
    else:
        adapters = [*_trained(config, folder / "run")[-comparison.test.checkpoints :]]
    held_out = [_kept(row, tuple(row)) for row in read_log(folder / "run" / "evaluations.jsonl")]
    result = {
        "arm": arm,
        "seed": seed,
        "code": commit(),
        "test": {
            **_mean([_tested(comparison, config, adapter, folder, seed) for adapter in adapters]),
            **_over_training(held_out),
        },
        "updates": [_kept(row, KEPT) for row in read_log(folder / "run" / "metrics.jsonl")],
        "held_out": held_out,
        "warnings": [w for row in read_log(folder / "run" / "metrics.jsonl") for w in row.get("warnings", ())],
    }
    write_text(folder / RESULT, _compact(result))
    return result


def _claim(folder: Path, config: RunConfig) -> None:
    """The device may change between two starts; whatever else decides the result may not."""
    text = dump_config(config.model_copy(update={"device": "any", "output": "run"}))
    file = folder / ARM_CONFIG
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{folder} was begun with other settings (see {ARM_CONFIG} there); delete that folder to run the arm "
            "again, or choose another output"
        )
    write_text(file, text)


def _trained(config: RunConfig, run: Path) -> list[Path]:
    """Checkpoints of the trained run, oldest first; trains whatever is missing."""
    if not (run / FINAL).is_dir():
        started = (run / "config.yaml").is_file()
        if not started:
            shutil.rmtree(run, ignore_errors=True)  # killed before it was a run
        assemble(config, resume=started).train()
    return checkpoints_of(run)


def _tested(
    comparison: Comparison, config: RunConfig, adapter: Path | None, folder: Path, seed: int
) -> dict[str, float | None]:
    """Mean of every metric on the test cases of this seed, the same for all arms."""
    test = comparison.test
    request = EvaluationRequest(
        config, adapter, cases=test.cases, held_out=True, case_seed=FRESH + seed, split=test.split
    )
    name = BASE if adapter is None else adapter.name
    rows = evaluate(request, folder / "test" / name, keep_pictures=False)
    return {metric: None if figure is None else figure.mean for metric, figure in mean_scores(rows).items()}


def _mean(tests: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for metric in tests[0]:
        values = [value for test in tests if (value := test[metric]) is not None]
        means[metric] = sum(values) / len(values) if values else None
    return means


def _over_training(held_out: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Mean of every held-out figure over the evaluations after the first: high for what rises early and stays."""
    after = [row for row in held_out if row["update"] > 0]
    names = set.intersection(*map(set, after)) - {"update"} if after else set()  # always scored
    return {f"{name}{OVER_TRAINING}": sum(row[name] for row in after) / len(after) for name in sorted(names)}


def _kept(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    numbers = {name: row[name] for name in names if isinstance(row.get(name), int | float)}
    return {name: round(value, DIGITS) for name, value in numbers.items()}


def _compact(result: Mapping[str, Any]) -> str:
    """JSON with one line per update and evaluation."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(json.dumps(row) for row in value)
            parts.append(f'"{key}": [\n{rows}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _die_with(parent: int) -> None:
    """A comparison that is killed must not leave arms behind that write where its successor writes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(parent: str, file: str, output: str, arm: str, seed: str, device: str | None = None) -> None:
    _die_with(int(parent))
    try:
        run_arm(Comparison.read(Path(file), Path(output)), arm, int(seed), device)
    except (InputError, RunError) as error:  # one line for the user; anything else is a bug and keeps its traceback
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
