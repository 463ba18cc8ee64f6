"""What torchrun, mpirun and srun tell the processes they start. Imports nothing heavy: every command uses this."""

from __future__ import annotations

import os
from collections.abc import Iterator

from customized_grpo.errors import InputError

# Variables that hold the number of processes. For SLURM it is the step's: the job's script itself is one process.
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's seconds between passing on a signal and SIGKILL


class LaunchError(InputError, ValueError):
    """Processes that were started in a way that cannot work; the message says how to start them."""


def check_connected(known: int) -> None:
    """Raises LaunchError if a launcher started more processes than the `known` ones: each would train on its own."""
    for variable, started in _started():
        if started > known:
            raise LaunchError(
                f"{variable}={started}, but this process knows of {known}: each would train its own model. Start "
                "them with torchrun --nproc_per_node N -m customized_grpo train ..."
            )


def check_alone(command: str) -> None:
    """Raises LaunchError if a launcher started several processes of a command that cannot divide its work."""
    for variable, started in _started():
        if started > 1:
            raise LaunchError(
                f"{variable}={started}, but only train is divided among processes: each would do all the work of "
                f"{command} and write the same files. Start one process: customized-grpo {command} ..."
            )


def notices() -> list[str]:
    """What a user should know before the run starts, one line each."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or PATIENCE in os.environ:
        return []
    return [
        "torchrun kills its processes 30 s after SIGTERM or Ctrl-C by default, and a longer update is then lost: "
        f"start it with {PATIENCE}=600"
    ]


def _started() -> Iterator[tuple[str, int]]:
    """Each variable that is set to a number of processes."""
    for variable in COUNTS:
        started = os.environ.get(variable, "")
        if started.isdecimal():
            yield variable, int(started)
