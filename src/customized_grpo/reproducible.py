"""The same bits whatever memory a process happens to get."""

from __future__ import annotations

from torch import nn

ALIGNMENT = 64  # bytes: what torch gives tensors of its own


def align(module: nn.Module) -> None:
    """Move weights that lie unaligned, as in a file mapped into memory, into memory of their own.

    Matrix products on a CPU round differently by where their operands begin (about 1e-6 of a layer's output), so that
    two processes with the same weights would disagree.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
