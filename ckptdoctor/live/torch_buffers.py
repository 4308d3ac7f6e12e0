"""Buffers of a module as they were: observers of quantisation learn ranges in inference mode too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from torch import nn

__all__ = ["address", "kept_buffers"]

_LARGEST = 1 << 20
"""Elements of a buffer that is copied; larger ones are quantised weights and masks, which stay."""


class _Held(NamedTuple):
    module: nn.Module
    name: str
    buffer: torch.Tensor
    values: torch.Tensor


@contextmanager
def kept_buffers(module: nn.Module, but: Collection[int]) -> Iterator[None]:
    """Put back what a run writes into buffers, and buffers that it replaces.

    Parameters
    ----------
    module
        What is run.
    but
        `address` of what is not put back.
    """
    held = [
        _Held(each, name, buffer, buffer.detach().clone())
        for each in module.modules()
        for name, buffer in each.named_buffers(recurse=False)
        if buffer.numel() <= _LARGEST and address(buffer) not in but
    ]
    try:
        yield
    finally:
        for each in held:
            _put_back(each)


def address(buffer: torch.Tensor) -> int:
    """Where the values of a tensor are; 0 where they are nowhere, or in several places."""
    try:
        place: int = buffer.data_ptr()
    except RuntimeError:  # sparse
        return 0
    return place


def _same(buffer: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether all values are those, NaN being itself.

    Versions do not tell: what observers of quantisation write in one operation does not count.
    """
    if buffer.shape != values.shape:
        return False
    try:
        return bool(((buffer == values) | ((buffer != buffer) & (values != values))).all())  # noqa: PLR0124
    except RuntimeError:  # sparse, no values, types of 8 bits and less
        return False


def _put_back(held: _Held) -> None:
    """Only what was written to: autograd refuses a graph whose tensors were."""
    import torch  # noqa: PLC0415

    buffer, values = held.buffer, held.values
    if not _same(buffer, values):
        with torch.inference_mode(mode=buffer.is_inference()), torch.no_grad():
            if buffer.shape != values.shape:
                buffer.resize_(values.shape)
            buffer.copy_(values)
    scripted = isinstance(held.module, torch.jit.ScriptModule)
    if not scripted and held.module._buffers.get(held.name) is not buffer:
        held.module._buffers[held.name] = buffer
