"""If memory runs out, use smaller micro-batches instead of losing the run."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from customized_grpo.errors import RunError, first_line

EXHAUSTED = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
SMALLER = (
    "make pictures smaller (model.height and model.width, --size) or fewer at a time (groups.rollout_batch), hold "
    "weights in bfloat16 (model.dtype, --dtype) or text encoders on the CPU (model.offload_text_encoders=true)"
)


class MemoryExhaustedError(RunError, RuntimeError):
    """Not even one image at a time fits; the message says what to make smaller."""


@dataclass
class MicroBatches:
    """Images per pass in rollout and update: as configured, until memory runs out.

    Both are then halved together and the whole update is repeated. Rollout and update thus keep the same shapes, and
    the ratio of new to old policy starts at 1.
    """

    rollout: int
    update: int
    halved: int = 0
    configured: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.configured = self.rollout, self.update

    def as_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with, as JSON; {} if the sizes are as configured."""
        sizes = {"configured": [*self.configured], "rollout": self.rollout, "update": self.update}
        return {**sizes, "halved": self.halved} if self.halved else {}

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on with the sizes of `as_dict`, unless the user has configured others since."""
        if saved and tuple(saved["configured"]) == self.configured:
            self.rollout, self.update, self.halved = saved["rollout"], saved["update"], saved["halved"]

    def counters(self) -> dict[str, int]:
        """Entries for the row of an update; none while the sizes are as configured."""
        counters = {"out_of_memory": self.halved, "rollout_batch": self.rollout, "update_batch": self.update}
        return counters if self.halved else {}

    def halve(self, error: torch.OutOfMemoryError, *, can_repeat: bool = True) -> None:
        """Raises MemoryExhaustedError if nothing is left to halve, or if the update cannot be repeated.

        It cannot be repeated with several processes: the others are already waiting.
        """
        if not can_repeat:
            raise MemoryExhaustedError(
                f"out of memory ({first_line(error)}), and several processes cannot repeat an update; resume with "
                f"--resume and groups.batch=null groups.rollout_batch={max(self.rollout // 2, 1)} "
                f"groups.update_batch={max(self.update // 2, 1)}"
            ) from None
        if self.rollout == self.update == 1:
            raise MemoryExhaustedError(
                f"out of memory with one image at a time ({first_line(error)}); make model.height and model.width, "
                "adapter.rank or the rewards' models smaller, or set model.gradient_checkpointing=true"
            ) from None
        self.rollout, self.update = max(self.rollout // 2, 1), max(self.update // 2, 1)
        self.halved += 1
        warnings.warn(
            f"out of memory ({first_line(error)}): continuing with groups.rollout_batch={self.rollout} and "
            f"groups.update_batch={self.update}",
            stacklevel=2,
        )

    def run(
        self, attempt: Callable[[], dict[str, Any]], undo: Callable[[], None], *, can_repeat: bool = True
    ) -> dict[str, Any]:
        """The row of an update that fits into memory. `undo` brings back the state before a failed attempt.

        Raises MemoryExhaustedError.
        """
        while True:
            try:
                return attempt() | self.counters()
            except torch.OutOfMemoryError as error:
                self.halve(error, can_repeat=can_repeat)
            gc.collect()  # after the `except` block, which keeps the failed attempt's tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            undo()


def is_exhausted(error: RuntimeError) -> bool:
    """Whether memory ran out: torch's own error, or that of a CPU, of a library or of a collective."""
    return isinstance(error, torch.OutOfMemoryError) or EXHAUSTED.search(str(error)) is not None


def raise_if_exhausted(error: RuntimeError) -> None:
    """Raises MemoryExhaustedError, which says what to make smaller, if memory ran out."""
    if is_exhausted(error):
        raise MemoryExhaustedError(f"out of memory ({first_line(error)}); {SMALLER}") from None
