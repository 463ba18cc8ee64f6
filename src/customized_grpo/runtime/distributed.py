"""Several processes that train one model: who does what, and how figures and gradients come together.

Every process holds the whole policy, takes its share of the groups and cases, and ends each update with the same
gradients: sums over all images, divided by what one process alone would divide by. So N processes train what one does.
Accelerate starts and connects them (torchrun, one process per GPU); here is only what an update needs of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes, reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from customized_grpo.errors import RunError
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.launchers import check_connected

BUCKET = 25 * 2**20  # gradients, 100 MiB of them, are summed at once: few messages, and a small copy


class DistributedError(RunError, RuntimeError):
    """Processes that cannot go on together; the message says what to do."""


class Processes:
    """This process among those of the run.

    device  as configured; with several processes "cuda" becomes the GPU of this one

    Raises LaunchError where a launcher started several processes that do not know of each other: each would train a
    model of its own.
    """

    def __init__(self, device: str):
        chosen = usable_device(device)
        state = PartialState(cpu=chosen.type != "cuda")
        self.index, self.count = state.process_index, state.num_processes
        # Accelerate's "cpu:0" would copy weights that "cpu" leaves where they were mapped into memory; matrix products
        # round by where their operands begin, and processes would no longer agree with each other and with diffusers.
        self.device = chosen if self.count == 1 or chosen.type == "cpu" else state.device
        check_connected(self.count)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """This process's part of `total` things; parts differ by one at most, and together they are everything."""
        each, more = divmod(total, self.count)
        start = self.index * each + min(self.index, more)
        return slice(start, start + each + (self.index < more))

    def gather(self, mine: Tensor, total: int) -> Tensor:
        """All processes' parts [n, ...] of `share(total)`, in order [total, ...]; on the device of `mine`."""
        if self.count == 1:
            return mine
        largest = -(-total // self.count)
        with _collective():
            padded = pad_across_processes(mine.to(self.device), dim=0)
            parts = gather(padded).unflatten(0, (self.count, largest))  # pyright: ignore[reportAttributeAccessIssue]
        each, more = divmod(total, self.count)
        return torch.cat([part[: each + (index < more)] for index, part in enumerate(parts)]).to(mine.device)

    def first(self, mine: Tensor, total: int, count: int) -> Tensor:
        """The first `count` of `total` things, in every process; they are large, so they come one after the other.

        mine   `share(total)` of them; where that is nothing, any one, for its shape
        """
        if self.count == 1:
            return mine[:count]
        part, nothing = self.share(total), torch.zeros_like(mine[0])
        here = [mine[n - part.start] if part.start <= n < part.stop else nothing for n in range(min(count, total))]
        return torch.stack([self.sum(each) for each in here]) if here else mine[:0]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a tensor that has the same shape in each."""
        if self.count == 1:
            return values
        with _collective():
            total = reduce(values.to(self.device), reduction="sum")
        return total.to(values.device)  # pyright: ignore[reportAttributeAccessIssue]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes, in place, its sum over the processes; one that a process has not is zero there."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _collective():
                torch.distributed.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.sum(torch.tensor(float(here))) > 0)

    def check_position(self, update: int, optimizer_step: int) -> None:
        """Raises DistributedError unless all processes go on from the same place."""
        places = self.gather(torch.tensor([[update, optimizer_step]]), self.count).tolist()
        for index, place in enumerate(places):
            if place != places[0]:
                first, other = (f"from update {update} (optimiser step {step})" for update, step in (places[0], place))
                raise DistributedError(
                    f"process 0 goes on {first}, process {index} {other}: they would train different models; all of "
                    "them need the same run folder, on a file system that every node sees: output=..."
                )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in the first process, and then in all others."""
        if not self.main:
            self._wait()
        yield
        if self.main:
            self._wait()

    def _wait(self) -> None:
        with _collective():
            PartialState().wait_for_everyone()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In order, together at most BUCKET numbers, or a larger one by itself."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _collective() -> Iterator[None]:
    """What waits for the other processes; torch's error where one of them has gone becomes one line."""
    try:
        yield
    except RuntimeError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistributedError(
            f"another process of the run has gone or does not answer ({said}); its own message says why. The last "
            "checkpoint is whole: start all of them again with --resume"
        ) from error


def shard(blocks: Iterable[nn.Module], whole: Sequence[nn.Parameter], device: torch.device) -> None:
    """Divide the weights of `blocks` among the processes (FSDP2): each is gathered when its block computes.

    whole   the adapter's parameters: they stay whole in every process, and so do gradients, checkpoints and files

    From here on all processes have to run the same number of forward passes, in the same order.
    """
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    for block in blocks:
        # Without a module above them the blocks are roots each, and a root keeps what it has gathered after a pass.
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params={*whole})
