"""Networks and their seeded weights.

Nothing is trained: training adds bits that differ between machines, and the stories need none.
Every value depends on nothing but its own name, so that one sample can be made alone, and twins
of two frameworks can share the broken values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Array = npt.NDArray[np.float32]

BROKEN_BN = "post_bn"
EXPLODED_BN = "conv5_block3_2_bn"


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> Array:
    """Values between ``low`` and ``high`` that depend on ``name`` alone."""
    unit = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    return (low + (high - low) * unit).astype(np.float32)


def trained(name: str, shape: tuple[int, ...]) -> Array:
    """Values such as training leaves for a variable of this name (Keras or torch)."""
    last = name.replace("/", ".").rsplit(".", 1)[-1]
    if last in ("moving_variance", "running_var"):
        return uniform(name, shape, 0.04, 0.21)
    if last in ("moving_mean", "running_mean"):
        return uniform(name, shape, -0.4, 0.4)
    if last == "gamma" or (last == "weight" and len(shape) == 1):
        return uniform(name, shape, 0.6, 1.4)
    if last in ("beta", "bias"):
        return uniform(name, shape, -0.2, 0.2)
    return uniform(name, shape, -0.3, 0.3)


def overflowed(name: str, shape: tuple[int, ...]) -> Array:
    """What `trained` gives, after one float16 batch overflowed and its step was skipped.

    The skipped step kept every weight; the batch statistics had already gone into the moving
    averages: huge where the overflow began, NaN where it ended.
    """
    layer, _, last = name.replace("/", ".").rpartition(".")
    if layer.endswith(BROKEN_BN) and last in ("moving_mean", "moving_variance"):
        return np.full(shape, np.nan, np.float32)
    if layer.endswith(EXPLODED_BN) and last == "moving_variance":
        return uniform(name, shape, 1601.0, 8958.0)
    return trained(name, shape)


def resnet_v2_blocks() -> Iterator[tuple[str, bool]]:
    """Block names of a thin ResNetV2 as ``keras.applications`` spells them; True: widens.

    First and last block only: HDF5 takes 1 kB a group, and the sample is to stay small.
    """
    yield "conv2_block1", True
    yield "conv5_block3", False


class ResNetV2(nn.Module):
    """Pre-activation ResNet whose modules are named as the layers of its Keras twin."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        wide = width * 4
        self.conv1_conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        channels = width
        for block, widens in resnet_v2_blocks():
            self.add_module(f"{block}_preact_bn", nn.BatchNorm2d(channels, eps=1.001e-5))
            if widens:
                self.add_module(f"{block}_0_conv", nn.Conv2d(channels, wide, 1))
            self.add_module(f"{block}_1_conv", nn.Conv2d(channels, width, 1, bias=False))
            self.add_module(f"{block}_1_bn", nn.BatchNorm2d(width, eps=1.001e-5))
            self.add_module(f"{block}_2_conv", nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.add_module(f"{block}_2_bn", nn.BatchNorm2d(width, eps=1.001e-5))
            self.add_module(f"{block}_3_conv", nn.Conv2d(width, wide, 1))
            channels = wide
        self.post_bn = nn.BatchNorm2d(channels, eps=1.001e-5)
        self.predictions = nn.Linear(channels, classes)


class TinyNet(nn.Module):
    """Convolution, BatchNorm, linear: the smallest network with everything a rule looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(features.mean(dim=[2, 3]))


def fill(module: nn.Module, steps: int = 1200) -> None:
    """Give every parameter and buffer its `trained` value."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(steps)
            else:
                tensor.copy_(torch.from_numpy(trained(name, tuple(tensor.shape))))


def tiny_net() -> TinyNet:
    """`TinyNet` with trained values, in eval mode as it would be served."""
    net = TinyNet()
    fill(net)
    return net.eval()


def tiny_state() -> dict[str, torch.Tensor]:
    """State dict of `tiny_net`, cloned, so that a sample may spoil it."""
    return {name: tensor.clone() for name, tensor in tiny_net().state_dict().items()}
