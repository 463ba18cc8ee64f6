"""What a run knows of its rewards' levels before anything is measured."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.calibration.file import (
    CALIBRATION,
    CalibrationError,
    RewardCalibration,
    calibration_problems,
    check_calibration,
    read_calibration,
)
from customized_grpo.config import RunConfig
from customized_grpo.files.adapter_places import checkpoints_of, has_trained
from customized_grpo.training.rules import needs_calibration


def kept_calibrations(config: RunConfig, *, resume: bool) -> dict[str, RewardCalibration] | None:
    """What is known before anything is measured: the file of the run that is resumed, or the file of the recipe.

    A run that has not trained yet may have other rewards now: its own file is then used if it is still theirs. None if
    the run uses no calibration. Raises CalibrationError.
    """
    run, file = Path(config.output), config.shaping.calibration
    if file is None and not needs_calibration(config):
        return None
    if resume and has_trained(run):
        return check_calibration(_of_run(run), config, run / CALIBRATION)
    if resume and file is None and (run / CALIBRATION).exists():
        own = read_calibration(run / CALIBRATION)
        if not any(calibration_problems(own, config)):
            return check_calibration(own, config, run / CALIBRATION)
    return {} if file is None else check_calibration(read_calibration(Path(file)), config, file)


def _of_run(run: Path) -> dict[str, RewardCalibration]:
    """The run's own file, which must be what its last checkpoint was trained with. Raises CalibrationError."""
    file, copies = run / CALIBRATION, [folder / CALIBRATION for folder in checkpoints_of(run)]
    if not any(copy.exists() for copy in copies):
        return read_calibration(file)
    copy = next(copy for copy in reversed(copies) if copy.exists())
    way_out = f"restore it from {copy}, or start another run with output=..."
    if not file.exists():
        raise CalibrationError(f"{file} is missing; {way_out}")
    found = read_calibration(file)
    if found != read_calibration(copy):
        raise CalibrationError(f"{file} has changed since the run began; {way_out}")
    return found
