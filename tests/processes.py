"""Several real processes on this machine, connected as by torchrun (gloo), without starting Python again."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate import PartialState


def in_processes(count: int, work: Callable[[], None], folder: Path) -> None:
    """`work()` in each of `count` processes; AssertionError with the traceback of the first that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    children = [context.Process(target=_child, args=(index, count, port, work, folder)) for index in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=300)
    failures = [file.read_text() for file in sorted(folder.glob("failed-*.txt"))]
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert not failures, failures[0]
    assert codes == [0] * count


def _child(index: int, count: int, port: int, work: Callable[[], None], folder: Path) -> None:
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    PartialState._reset_state()
    try:
        work()
        PartialState().destroy_process_group()
    except BaseException:
        (folder / f"failed-{index}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
