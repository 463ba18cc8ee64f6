"""Several processes that train one model: how work is shared, and how figures and gradients are combined.

Every process holds the whole policy and takes a share of the groups and cases. After each update all have the same
gradients: sums over all images, divided by the number that a single process would divide by. So N processes train the
model that one process trains. Accelerate connects the processes (torchrun, one per GPU); this module adds what an
update needs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, pad_across_processes, reduce
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from customized_grpo.errors import RunError, first_line
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.launchers import LaunchError, check_connected
from customized_grpo.runtime.memory import is_exhausted

BUCKET = 25 * 2**20  # gradients summed per message (100 MiB): few messages, and a small copy
# What gloo, which raises plain RuntimeErrors, says of a process that has gone; NCCL and the store raise DistErrors.
LOST = re.compile("connection (closed|reset|refused|aborted)|timed out|timeout|broken pipe|socket", re.IGNORECASE)


T = TypeVar("T")


class DistributedError(RunError, RuntimeError):
    """Processes that cannot continue together; the message says what to do."""


class Processes:
    """This process among the processes of the run.

    device  as configured, except that with several processes "cuda" becomes this process's GPU

    Raises LaunchError if a launcher started several processes that are not connected (each would train its own model),
    or if they cannot be connected.
    """

    def __init__(self, device: str):
        chosen = usable_device(device)
        try:
            state = PartialState(cpu=chosen.type != "cuda")
        except (ValueError, RuntimeError) as error:  # the launcher's variables are incomplete, or nobody answers
            raise LaunchError(
                f"the processes cannot be connected ({first_line(error)}); start them with torchrun "
                "--nproc_per_node N -m customized_grpo train ..."
            ) from error
        self.index, self.count = state.process_index, state.num_processes
        # Not Accelerate's "cpu:0": moving to it copies the weights out of their memory-mapped file. Matrix products
        # round depending on alignment, so results would no longer equal those of a single process, or of diffusers.
        self.device = chosen if self.count == 1 or chosen.type == "cpu" else state.device
        check_connected(self.count)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """This process's part of `total` items. Together the parts cover all items; sizes differ by at most one."""
        size, larger = divmod(total, self.count)  # the first `larger` processes take one more
        start = self.index * size + min(self.index, larger)
        return slice(start, start + size + (self.index < larger))

    def gather(self, own: Tensor, total: int) -> Tensor:
        """The parts `share(total)` of all processes [n, ...], in order [total, ...], on the device of `own`."""
        if self.count == 1:
            return own
        largest = -(-total // self.count)
        with _collective():
            padded = pad_across_processes(own.to(self.device), dim=0)
            parts = gather(padded).unflatten(0, (self.count, largest))  # pyright: ignore[reportAttributeAccessIssue]
        size, larger = divmod(total, self.count)
        return torch.cat([part[: size + (index < larger)] for index, part in enumerate(parts)]).to(own.device)

    def first(self, own: Tensor, total: int, count: int) -> Tensor:
        """The first `count` of `total` items, in every process. They are sent one by one because they are large.

        own   this process's `share(total)`; if that is empty, any one item, for its shape
        """
        if self.count == 1:
            return own[:count]
        part, zeros = self.share(total), torch.zeros_like(own[0])
        items = [own[n - part.start] if part.start <= n < part.stop else zeros for n in range(min(count, total))]
        return torch.stack([self.sum(item) for item in items]) if items else own[:0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor that has the same shape in each."""
        if self.count == 1:
            return values
        with _collective():
            total = reduce(values.to(self.device), reduction="sum")
        return total.to(values.device)  # pyright: ignore[reportAttributeAccessIssue]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient, in place, by its sum over all processes; a missing gradient counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _collective():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def any(self, condition: bool) -> bool:
        """Whether the condition holds in any process."""
        return bool(self.sum(torch.tensor(float(condition))) > 0)

    def check_position(self, update: int, optimizer_step: int) -> None:
        """Raises DistributedError unless all processes resume from the same position."""
        positions = self.gather(torch.tensor([[update, optimizer_step]]), self.count).tolist()
        for index, position in enumerate(positions):
            if position != positions[0]:
                main, other = (f"update {at[0]} (optimiser step {at[1]})" for at in (positions[0], position))
                raise DistributedError(
                    f"process 0 resumes from {main}, process {index} from {other}: they would train different "
                    "models; all processes need the same run folder, on a file system that every node sees: output=..."
                )

    def check_data(self, texts: object) -> None:
        """Raises DistributedError unless all processes have the same texts, in the same order."""
        digest = hashlib.blake2b(repr(texts).encode("utf-8", "surrogatepass"), digest_size=6).digest()
        digests = self.gather(torch.tensor([int.from_bytes(digest, "big")]), self.count).tolist()
        for index, other in enumerate(digests):
            if other != digests[0]:
                raise DistributedError(
                    f"process {index} has read other data than process 0: they would train on different samples; "
                    "data.source and data.root have to hold the same on every node"
                )

    def from_main(self, value: T) -> T:
        """The first process's value, of any kind, in every process."""
        if self.count == 1:
            return value
        values = [value]
        with _collective():
            broadcast_object_list(values)
        return values[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Executes the block in the first process, and only then in the others."""
        if not self.main:
            self._wait()
        yield
        if self.main:
            self._wait()

    def at_once(self, error: Exception) -> Exception:
        """The error, as soon as all processes have it: a launcher ends the others when one exits, and the first may
        still be saving."""
        self._wait()
        return error

    def _wait(self) -> None:
        with _collective():
            PartialState().wait_for_everyone()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of at most BUCKET numbers together; a larger tensor is a bucket of its own."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(member.numel() for member in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _collective() -> Iterator[None]:
    """Around operations that wait for the other processes. Raises DistributedError if one of them has died.

    Any other error, such as too little memory for the result, is this process's own.
    """
    try:
        yield
    except RuntimeError as error:
        if is_exhausted(error) or not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        raise DistributedError(
            f"another process of the run has died or does not answer ({first_line(error)}); its own message says why. "
            "The last checkpoint is intact: start all processes again with --resume"
        ) from error


def highest(number: int, device: torch.device) -> int:
    """The largest of all processes' numbers, which all of them have to ask for at the same time."""
    largest = torch.tensor(number, device=device)
    with _collective():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def shard(blocks: Iterable[nn.Module], whole: Sequence[nn.Parameter], device: torch.device) -> None:
    """Divide the weights of `blocks` among the processes (FSDP2); each block is gathered when it computes.

    whole   the adapter's parameters, which are not divided; neither are gradients, checkpoints and files

    From then on all processes must run the same number of forward passes in the same order.
    """
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    for block in blocks:
        # Each block is a root of its own, and by default a root keeps its gathered weights after a pass.
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params={*whole})
