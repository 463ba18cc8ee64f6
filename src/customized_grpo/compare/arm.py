"""Runs one arm with one seed in a process of its own: train, test the last checkpoints, write result.json.

    python -m customized_grpo.compare.arm PARENT_PROCESS COMPARISON_FILE OUTPUT ARM SEED [DEVICE]

It continues where an earlier process was stopped, and stops when the process that started it has ended.
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
from customized_grpo.compare.results import RESULT, SECONDS, read_result, read_run_logs
from customized_grpo.config import RunConfig, dump_config
from customized_grpo.cost.batches import settled
from customized_grpo.errors import InputError, RunError, UsageError
from customized_grpo.files.adapter_places import FINAL, checkpoints_of
from customized_grpo.files.durable import make_folder, write_text
from customized_grpo.measure.evaluate import evaluate
from customized_grpo.measure.request import EvaluationRequest
from customized_grpo.measure.rows import mean_scores
from customized_grpo.run.environment import commit
from customized_grpo.run.own_samples import RESTORE, OwnSamples
from customized_grpo.runtime.memory import raise_if_exhausted
from customized_grpo.training.assemble import assemble

ARM_CONFIG = "arm.yaml"
# Figures of every update that a result keeps; the run's own files have the rest.
KEPT = ("update", "reward_identity", "reward_prompt", "both_good", "conflict_excess", "both_bad", "correlation")
TEST_SEED_OFFSET = 1000  # added to the seed of an arm's test cases: `demo` and `evaluate` show those of seed 0
DIGITS = 5  # of the kept figures, so that a result is small enough to be committed


def run_arm(comparison: Comparison, arm: str, seed: int, device: str | None = None) -> dict[str, Any]:
    """The result of this arm and seed; runs everything that its folder does not have yet.

    Raises an InputError or RunError, for instance if the folder was started with other settings.
    """
    folder, config = comparison.folder(arm, seed), comparison.config(arm, seed, device)
    make_folder(folder)
    _claim(folder, config)
    if (folder / RESULT).exists():
        return read_result(folder)
    run = folder / "run"
    adapters = [None] if arm == BASE else _trained_adapters(config, run, comparison.test.checkpoints)
    updates, evaluations = read_run_logs(run)
    held_out = [_kept(row, tuple(row)) for row in evaluations]
    result = {
        "arm": arm,
        "seed": seed,
        "code": commit(),
        "test": {
            **_mean([_test(comparison, config, adapter, folder, seed) for adapter in adapters]),
            **_over_training(held_out),
        },
        "updates": [_kept(row, KEPT) for row in updates],
        "held_out": held_out,
        "warnings": [warning for row in updates for warning in row.get("warnings", ())],
    }
    seconds = [round(sum(row["seconds"].values()), 3) for row in updates if "seconds" in row]
    write_text(folder / SECONDS, json.dumps(seconds) + "\n")
    write_text(folder / RESULT, _compact(result))
    return result


def _claim(folder: Path, config: RunConfig) -> None:
    """Write arm.yaml, or compare it with the present settings. The device may differ: it does not decide results."""
    text = dump_config(config.model_copy(update={"device": "any", "output": "run"}))
    file = folder / ARM_CONFIG
    if not file.exists():
        write_text(file, text)
    elif file.read_text(encoding="utf-8", errors="replace") != text:
        raise UsageError(
            f"{folder} was started with other settings, or its {ARM_CONFIG} is damaged; delete that folder to run the "
            "arm again, or choose another --output"
        )


def _trained_adapters(config: RunConfig, run: Path, count: int) -> list[Path]:
    """The last `count` checkpoints of the run, oldest first; trains what is missing."""
    if not (run / FINAL).is_dir():
        started = (run / "config.yaml").is_file()
        if not started:
            shutil.rmtree(run, ignore_errors=True)  # killed before it had written its configuration
        assemble(settled(config, resume=started)[0], resume=started).train()
    checkpoints = checkpoints_of(run)
    if len(checkpoints) < count:
        raise UsageError(
            f"{run} has {len(checkpoints)} of the {count} checkpoints to test (test.checkpoints); delete {run.parent} "
            "to run the arm again"
        )
    return checkpoints[-count:]


def _test(
    comparison: Comparison, config: RunConfig, adapter: Path | None, folder: Path, seed: int
) -> dict[str, float | None]:
    """Mean of every metric on the test cases of this seed, which all arms share."""
    test = comparison.test
    request = EvaluationRequest(
        config,
        adapter,
        cases=test.cases,
        held_out=True,
        case_seed=TEST_SEED_OFFSET + seed,
        in_full=comparison.in_full,
        split=test.split,
    )
    for other in comparison.arms:
        _check_same_cases(request, comparison.folder(other, seed) / "run")
    name = BASE if adapter is None else adapter.name
    rows = evaluate(request, folder / "test" / name, keep_pictures=False)
    return {metric: None if figure is None else figure.mean for metric, figure in mean_scores(rows).items()}


def _check_same_cases(request: EvaluationRequest, run: Path) -> None:
    """Raises DataChangedError if a run of this comparison knew other cases: the arms could not be compared."""
    if own := OwnSamples.read(run):
        both = [name for name in own.held_out if name in request.digests]
        own.check(request.digests, both, f"that run is {run}; {RESTORE}, or start another comparison with --output")


def _mean(tests: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of every metric over the tested checkpoints; None if none of them could be scored."""
    means: dict[str, float | None] = {}
    for metric in tests[0]:
        values = [value for test in tests if (value := test[metric]) is not None]
        means[metric] = sum(values) / len(values) if values else None
    return means


def _over_training(held_out: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Mean of every held-out figure over the evaluations after the first: high if it rises early and stays up."""
    after = [row for row in held_out if row["update"] > 0]
    names = set.intersection(*map(set, after)) - {"update"} if after else set()  # scored every time
    return {f"{name}{OVER_TRAINING}": sum(row[name] for row in after) / len(after) for name in sorted(names)}


def _kept(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The numbers among these figures of a row, rounded."""
    numbers = {name: row[name] for name in names if isinstance(row.get(name), int | float)}
    return {name: round(value, DIGITS) for name, value in numbers.items()}


def _compact(result: Mapping[str, Any]) -> str:
    """JSON with one line per update, evaluation and warning."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(json.dumps(row) for row in value)
            parts.append(f'"{key}": [\n{rows}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _exit_with(parent: int) -> None:
    """End this process once its parent is gone: a killed comparison must leave no arm that keeps writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(parent: str, file: str, output: str, arm: str, seed: str, device: str | None = None) -> None:
    """Report an error of the user or of the run as one line, as the command line does; others are tracebacks."""
    _exit_with(int(parent))
    try:
        try:
            run_arm(Comparison.read(Path(file), Path(output)), arm, int(seed), device)
        except RuntimeError as error:
            raise_if_exhausted(error)
            raise
    except (InputError, RunError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
