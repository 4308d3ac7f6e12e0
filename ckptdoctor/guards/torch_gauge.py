"""Weights and running statistics of a live torch module, one number each per step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .watching import Slot

if TYPE_CHECKING:
    import torch

__all__ = ["TorchGauge"]

_STATISTICS = ("running_mean", "running_var")


class TorchGauge:
    """Trainable weights and running statistics; everything else cannot change, or may be infinite.

    A step costs one pass over them (`torch._foreach_norm`): 0.7 ms for 4.7 million weights on one
    core, 0.3 % of a training step there, and no waiting for the device.
    """

    dear = False

    def __init__(self, module: torch.nn.Module) -> None:
        named = list(_watched(module))
        self.slots: Sequence[Slot] = [slot for slot, _ in named]
        self._tensors = [tensor for _, tensor in named]
        groups: dict[tuple[Any, Any], list[int]] = {}
        for i, tensor in enumerate(self._tensors):
            groups.setdefault((tensor.device, tensor.dtype), []).append(i)
        self._groups = list(groups.values())
        self._order = np.argsort([i for group in self._groups for i in group])

    def read(self) -> list[torch.Tensor]:
        import torch  # noqa: PLC0415

        with torch.no_grad():
            listed = ([_local(self._tensors[i]) for i in group] for group in self._groups)
            return [torch.stack(torch._foreach_norm(tensors)) for tensors in listed]

    def suspects(self, readings: Sequence[list[torch.Tensor]]) -> NDArray[np.bool_]:
        import torch  # noqa: PLC0415

        groups = zip(*readings, strict=True)
        finite = [torch.stack(group).isfinite().cpu().numpy() for group in groups]
        suspects: NDArray[np.bool_] = ~np.concatenate(finite, axis=1)[:, self._order]
        return suspects

    def kind(self, slot: int) -> str:
        values = _local(self._tensors[slot].detach())
        if bool(values.isnan().any()):
            return "NaN"
        return "Inf" if bool(values.isinf().any()) else ""


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that is spread over several."""
    to_local = getattr(tensor, "to_local", None)
    local: torch.Tensor = tensor if to_local is None else to_local()
    return local


def _watched(module: torch.nn.Module) -> Iterator[tuple[Slot, torch.Tensor]]:
    import torch  # noqa: PLC0415

    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    lazy = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)
    for layer, part in module.named_modules():
        own: list[tuple[str, Any, Any]] = [
            (name, tensor, "weight")
            for name, tensor in part._parameters.items()
            if tensor is not None and tensor.requires_grad
        ]
        own += [
            (name, tensor, "statistic")
            for name, tensor in part._buffers.items()
            if tensor is not None and name in _STATISTICS
        ]
        for name, tensor, kind in own:
            if tensor.dtype in known and not tensor.is_meta and not isinstance(tensor, lazy):
                yield Slot(layer.replace("_orig_mod.", ""), name, kind), tensor
