"""A layer: tensors that work together, and what the file says about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..tensors import LayerConfig, Role, TensorInfo
from .conventions import Kind

__all__ = ["Layer", "Layers"]


class Layer(NamedTuple):
    """Tensors that work together, and what the file says about them.

    Parameters
    ----------
    name
        As the framework's user knows it: the stored name, else the path of its tensors.
    kind
        See `Kind`.
    role
        ``model`` or ``ema``.
    parts
        What it is -> the tensor: ``mean``, ``var``, ``gamma``, ``kernel`` ...
    told_by
        How it was recognised, for messages.
    class_name
        As stored, empty where the file does not say.
    config
        Stored configuration, None where there is none.
    key
        Group of the tensors' names: unique in the table.
    """

    name: str
    kind: Kind
    role: Role
    parts: Mapping[str, TensorInfo]
    told_by: str
    class_name: str
    config: LayerConfig | None
    key: str

    @property
    def keras(self) -> bool:
        """Whether its kernel is laid out as Keras, Flax and TensorFlow do: inputs before outputs."""
        info = self.weights or next(iter(self.parts.values()))
        leaf = info.name[max(info.name.rfind("."), info.name.rfind("/")) + 1 :]
        if "/" in info.name:
            return leaf != "weight"
        return leaf in ("kernel", "depthwise_kernel", "pointwise_kernel")

    @property
    def weights(self) -> TensorInfo | None:
        """The tensor whose axes count its outputs; None for a layer without a kernel."""
        parts = self.parts
        return parts.get("pointwise") or parts.get("kernel") or parts.get("v")

    @property
    def channels(self) -> int:
        """Channels of a BatchNorm or units of a kernel; 0 where that is not known."""
        for part in ("var", "mean", "gamma", "beta"):
            if part in self.parts:
                return self.parts[part].size
        return self.units

    @property
    def unit_axes(self) -> tuple[int, ...]:
        """Axes of the kernel that count its outputs; empty without a kernel.

        A transposed convolution of torch has the shape of an ordinary one: where its class is
        not stored, a bias of another length gives it away; else it is taken for an ordinary one.
        """
        info = self.weights
        if info is None or len(info.shape) < 2:
            return ()
        rank, name = len(info.shape), self.class_name.lower()
        usual, other = ((rank - 1,), (rank - 2,)) if self.keras else ((0,), (1,))
        if "transpose" in name and "pointwise" not in self.parts:
            return other
        if self.keras and "pointwise" not in self.parts:
            leaf = info.name.rpartition("/")[2]
            if "depthwise" in name or leaf.startswith("depthwise"):
                return (rank - 2, rank - 1)
        bias = self.parts.get("bias")
        if bias is None or self.config is not None or len(bias.shape) != 1:
            return usual
        told = bias.size == info.shape[other[0]] != info.shape[usual[0]]
        return other if told else usual

    @property
    def units(self) -> int:
        """Outputs of the kernel: the channels that a BatchNorm behind it has."""
        axes = self.unit_axes
        return math.prod(self.weights.shape[axis] for axis in axes) if self.weights and axes else 0

    @property
    def epsilon(self) -> tuple[float, str]:
        """Value added to the variance, and where it is known from."""
        if self.config is not None and self.config.epsilon is not None:
            return self.config.epsilon, "stored"
        if self.told_by.startswith("Flax"):
            return 1e-5, "Flax' default"
        return (1e-3, "Keras' default") if self.keras else (1e-5, "torch's default")


class Layers:
    """Layers of a checkpoint in file order.

    Parameters
    ----------
    all
        Every layer that a convention recognises.
    """

    def __init__(self, all: tuple[Layer, ...]) -> None:
        self.all = all
        self._by_tensor: dict[str, Layer] = {}

    def of_kind(self, *kinds: Kind) -> Iterator[Layer]:
        """Yield the layers of these kinds."""
        return (layer for layer in self.all if layer.kind in kinds)

    @property
    def batchnorms(self) -> Iterator[Layer]:
        """Yield the layers with running statistics."""
        return self.of_kind("batchnorm")

    def of(self, tensor: str) -> Layer | None:
        """Layer that a tensor is part of, None where no convention knows it."""
        if not self._by_tensor:
            self._by_tensor = {
                info.name: layer for layer in self.all for info in layer.parts.values()
            }
        return self._by_tensor.get(tensor)

    def part_of(self, tensor: str) -> str:
        """Return what a tensor is to its layer; empty where no convention knows it."""
        layer = self.of(tensor)
        if layer is None:
            return ""
        return next(part for part, info in layer.parts.items() if info.name == tensor)
