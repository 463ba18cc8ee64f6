"""What torchrun, mpirun and srun tell the processes that they start. Imports nothing heavy: every command asks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from customized_grpo.errors import InputError

# How many there are. SLURM's is of the step: a job's script is one process of its own.
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's: seconds from the signal that it passes on to SIGKILL


class LaunchError(InputError, ValueError):
    """Processes that were started in a way that cannot work; the message says in which it would."""


def check_connected(known: int) -> None:
    """Raises LaunchError where a launcher started more processes than the `known` ones: each would train by itself."""
    for variable, started in _started():
        if started > known:
            raise LaunchError(
                f"{variable}={started}, but this process knows of {known}: each would train a model of its own. Start "
                "them with torchrun --nproc_per_node N -m customized_grpo train ..."
            )


def check_alone(command: str) -> None:
    """Raises LaunchError where a launcher started several processes of a command that is not divided among them."""
    for variable, started in _started():
        if started > 1:
            raise LaunchError(
                f"{variable}={started}, but only train is divided among processes: each would do all the work of "
                f"{command}, into the same files. Start one: customized-grpo {command} ..."
            )


def notices() -> list[str]:
    """What a user should know before the run starts, one sentence each."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or PATIENCE in os.environ:
        return []
    return [
        "torchrun kills its processes 30 s after SIGTERM or Ctrl-C, if it was told nothing else; an update that takes "
        f"longer is then not saved: start it with {PATIENCE}=600"
    ]


def _started() -> Iterator[tuple[str, int]]:
    for variable in COUNTS:
        started = os.environ.get(variable, "")
        if started.isdigit():
            yield variable, int(started)
