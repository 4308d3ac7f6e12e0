"""What the weight rules share: the kernels of a checkpoint as columns, and what surrounds each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from ..layers import Layer
from ..tensors import Array, TensorInfo
from .base import Context

__all__ = ["Kernel", "Kernels", "batchnorm_behind", "by_design", "kernels_of", "large", "trained"]

_PARTS = frozenset(("kernel", "pointwise", "recurrent", "up", "down", "v"))
_KINDS = {
    kind: 1 << bit
    for bit, kind in enumerate(
        ("conv", "dense", "embedding", "recurrent", "attention", "lora", "weightnorm",
         "spectralnorm", "quantised")
    )
}  # fmt: skip
_WIDE = {
    **dict.fromkeys(("float16", "float32", "float64", "bfloat16"), True),
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
                     "float8_e4m3", "float8_e3m4"), False),
}  # fmt: skip


class Kernel(NamedTuple):
    """One weight matrix or filter bank.

    Parameters
    ----------
    info, layer, part
        The tensor, the layer it is part of, and what it is to it.
    units
        Outputs: extent of the first axis in torch, of the last in Keras.
    fan_in
        Elements per output; 1 for an embedding, whose output is a stored row.
    """

    info: TensorInfo
    layer: Layer
    part: str
    units: int
    fan_in: int

    @property
    def keras(self) -> bool:
        """Whether outputs are the last axis."""
        return _keras(self.info.name)

    @property
    def grouped(self) -> bool:
        """Whether each output may see an input of its own (depthwise convolution)."""
        shape = self.info.shape
        if self.keras:
            names = self.info.name.rpartition("/")[2] + self.layer.class_name.lower()
            return "depthwise" in names
        return len(shape) > 2 and shape[1] == 1 and shape[0] > 1


class Kernels:
    """Kernels of the model and the EMA, one number per kernel in each column.

    A checkpoint may have 50,000: `Kernel` objects are made for suspects only.
    """

    def __init__(self, ctx: Context) -> None:
        # parallel lists: 50,000 tuples would cost more in garbage collection than all the rest
        self._layers: list[Layer] = []
        self._parts: list[str] = []
        rows, biases, kinds, units, sizes, wide, ema = self._gather(ctx)
        self._kinds = np.asarray(kinds, np.int64)
        self.wide = np.asarray(wide, np.bool_)
        """Not of eight bits: those keep their scale elsewhere."""
        self.ema = np.asarray(ema, np.bool_)
        self.units = np.asarray(units, np.int64)
        self.size = np.asarray(sizes, np.float64)
        self.fan_in = np.where(self.of("embedding"), 1.0, self.size / self.units)
        stats, at = ctx.stats, np.asarray(rows, np.int64)
        bias = np.asarray(biases, np.int64)
        self.biased = bias >= 0
        self.same_bias = self.biased & (stats.minimum[bias] == stats.maximum[bias])
        """Whether there is a bias, and whether it is one number throughout."""
        self.minimum, self.maximum = stats.minimum[at], stats.maximum[at]
        self.mean, self.std, self.zeros = stats.mean[at], stats.std[at], stats.zeros[at]
        nonfinite = stats.nan[at] + stats.posinf[at] + stats.neginf[at]
        self.finite = (nonfinite == 0) & np.isfinite(self.std)
        with np.errstate(all="ignore"):
            self.peak = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
            self.rms = np.hypot(self.mean, self.std)
            self.gain = self.rms * np.sqrt(self.fan_in)
            # what the largest element leaves of the sum of squares, as its own root mean square
            share = np.square(self.peak / np.where(self.rms > 0, self.rms, 1)) / self.size
            self.body = self.rms * np.sqrt(np.maximum(0, 1 - share))

    def _gather(self, ctx: Context) -> tuple[list[int], ...]:
        """List row, row of the bias (or -1), kind, units, size and flags of every kernel."""
        row_of = dict(zip(ctx.stats, range(len(ctx.stats)), strict=True))
        rows: list[int] = []
        biases: list[int] = []
        kinds: list[int] = []
        units: list[int] = []
        sizes: list[int] = []
        wide: list[int] = []
        ema: list[int] = []
        for layer in ctx.layers.all:
            code = _KINDS.get(layer.kind)
            if code is None:
                continue
            parts = layer.parts
            for part, info in parts.items():
                if part not in _PARTS:
                    continue
                name, shape, breadth = info.name, info.shape, _WIDE.get(info.dtype)
                if breadth is None or len(shape) < 2 or 0 in shape or info.encoding != "plain":
                    continue
                if (part == "v") != (layer.kind == "weightnorm"):
                    continue  # the vectors of a spectral norm
                bias = parts.get("bias")
                if bias is None:
                    biases.append(-1)
                elif bias.shape != shape:
                    biases.append(row_of[bias.name])
                else:
                    continue  # shaped like its bias: the gain of a LayerNorm over several axes
                self._layers.append(layer)
                self._parts.append(part)
                rows.append(row_of[name])
                kinds.append(code)
                wide.append(breadth)
                ema.append(layer.role == "ema")
                units.append(shape[-1] if _keras(name) else shape[0])
                sizes.append(prod(shape))
        return rows, biases, kinds, units, sizes, wide, ema

    def of(self, *kinds: str) -> Array:
        """Mask of the kernels of these kinds."""
        wanted = sum(_KINDS[kind] for kind in kinds)
        mask: Array = self._kinds & wanted > 0
        return mask

    def where(self, screen: Array) -> Iterator[tuple[int, Kernel]]:
        """Yield index and kernel where ``screen`` is true."""
        for index in np.flatnonzero(screen).tolist():
            yield index, self[index]

    def __getitem__(self, index: int) -> Kernel:
        layer, part = self._layers[index], self._parts[index]
        info = layer.parts[part]
        units = int(self.units[index])
        fan_in = 1 if layer.kind == "embedding" else info.size // units
        return Kernel(info, layer, part, units, fan_in)

    def __len__(self) -> int:
        return len(self._layers)


def _keras(name: str) -> bool:
    """Whether a kernel of this name has its outputs last: Keras', and Flax' with dots."""
    return ("/" in name and not name.endswith("weight")) or name.endswith("kernel")


def kernels_of(ctx: Context) -> Kernels:
    """Kernels of the checkpoint; gathered once.

    Examples
    --------
    >>> from .base import Case
    >>> kernels = kernels_of(Case("", {"fc.weight": [[3.0, 4.0]], "fc.bias": [1.0]}).context())
    >>> kernels[0].info.name, kernels[0].fan_in, kernels.gain
    ('fc.weight', 2, array([5.]))
    """
    first = next(iter(ctx.table.infos.values()), None)
    if first is None:
        return Kernels(ctx)
    found: Kernels = ctx.once("kernels", first, lambda: Kernels(ctx))
    return found


def batchnorm_behind(ctx: Context, layer: Layer) -> Layer | None:
    """BatchNorm that a kernel feeds; None where there is none or nobody knows."""
    first = next(iter(ctx.table.infos.values()))

    def inverse() -> dict[str, Layer]:
        norms = {norm.key: norm for norm in ctx.layers.batchnorms}
        return {
            feed.kernel.key: norms[key]
            for key, feed in ctx.graph.feeds.items()
            if feed.kernel is not None and key in norms
        }

    behind: dict[str, Layer] = ctx.once("batchnorm behind", first, inverse)
    return behind.get(layer.key)


def trained(ctx: Context) -> bool | None:
    """Whether normalisation layers show that the checkpoint was trained; None without any.

    A fresh normalisation layer has gains of 1 (or 0), offsets of 0, means of 0, variances of 1.
    """
    first = next(iter(ctx.table.infos.values()))

    def look() -> bool | None:
        seen: bool | None = None
        for layer in ctx.layers.of_kind("batchnorm", "norm"):
            for part in ("var", "gamma", "beta"):
                info = layer.parts.get(part)
                stats = ctx.stats[info.name] if info is not None else None
                if stats is None or stats.minimum is None:
                    continue
                if stats.minimum != stats.maximum or stats.minimum not in (0.0, 1.0):
                    return True
                seen = False
        return seen

    answer: bool | None = ctx.once("trained", first, look)
    return answer


class _Design(NamedTuple):
    """Kernels that are zero at the start on purpose, by their names."""

    what: str
    names: str
    example: str
    seen_in: str


ZERO_AT_START: tuple[_Design, ...] = (
    _Design("LoRA's second factor", r"(.*[._])?lora_?(kernel_|embeddings_)?(B|up)([._:].*)?"
            r"|.*lora\.up(\..*)?", "q_proj.lora_B.weight",
            "PEFT, diffusers, kohya, Keras: the adapter starts as nothing"),
    _Design("an adapter's last projection", r".*adapters?(_\w+)?[._](.*[._])?(up|up_proj|fc2|output|2)[._].*",
            "adapter.up_proj.weight", "adapters"),
    _Design("a zero convolution", r".*(zero_conv|zero_linear|zero_proj|controlnet_(down|mid)_block"
            r"|controlnet_cond_embedding\.conv_out|before_proj|after_proj).*",
            "zero_convs.0.0.weight", "ControlNet"),
    _Design("an adaptive norm's modulation", r".*(adaln|ada_ln|modulation|norm\d?_context"
            r"|norm_out)[._].*", "blocks.0.adaLN_modulation.1.weight", "DiT, Flux"),
    _Design("a diffusion model's output", r"(.*[._])?(final_layer[._].*|proj_out[._]\w+"
            r"|out_layers\.3\.\w+|out\.2\.\w+)", "final_layer.linear.weight", "DiT, guided diffusion"),
    _Design("offsets of sampling points", r".*(offset|attention_weights|bbox_embed\.\d+\.layers\.2"
            r"|reference_points).*", "conv_offset.weight", "deformable convolution and DETR"),
    _Design("a spatial transformer's last layer", r".*(fc_loc|localization|\bstn)[._].*",
            "fc_loc.2.weight", "spatial transformers start at the identity"),
)  # fmt: skip
"""Conventions by which a kernel of zeros is a beginning, not damage."""


def by_design(info: TensorInfo) -> str:
    """Name the kind of kernel that starts at zero on purpose; empty for ordinary ones.

    Examples
    --------
    >>> by_design(TensorInfo(name="q.lora_B.weight", path=(), dtype="float32", shape=(2, 2)))
    "LoRA's second factor"
    """
    name = info.name.replace("/", ".")
    rows = (row.what for row in ZERO_AT_START if re.fullmatch(row.names, name, re.IGNORECASE))
    return next(rows, "")


def large(
    ctx: Context, info: TensorInfo, above: float, most: int
) -> list[tuple[int, float]] | Literal["many", "unread"]:
    """Elements whose magnitude exceeds ``above``, as flat index and value.

    Returns
    -------
    list or str
        ``many`` when there are more than ``most`` (the search ends at once: a layer that is large
        everywhere costs one block), ``unread`` when the rules have read enough for this file.
    """
    found: list[tuple[int, float]] = []
    start = 0
    for block in ctx.table.blocks(info):
        if not _afford(ctx, block.nbytes):
            return "unread"
        # magnitudes of floats compare as their bits do: every type, no slow ml_dtypes arithmetic
        word = np.dtype(f"u{block.dtype.itemsize}")
        sign = word.type(1 << (8 * word.itemsize - 1))
        with np.errstate(over="ignore"):
            limit = np.asarray([above]).astype(block.dtype).view(word)[0]
        hits = np.flatnonzero((block.view(word) & ~sign) > limit)
        if len(found) + hits.size > most:
            return "many"
        found += [(start + int(i), float(block[i])) for i in hits]
        start += block.size
    return found


RE_READ = 0.03
"""Share of the checkpoint's bytes that searches for single elements may read again: at a third of
the speed of the statistics pass, a tenth of its time."""


def _afford(ctx: Context, nbytes: int) -> bool:
    first = next(iter(ctx.table.infos.values()))

    def allowance() -> list[float]:
        return [16e6 + RE_READ * sum(info.nbytes for info in ctx.table.infos.values())]

    left: list[Any] = ctx.once("bytes left to search", first, allowance)
    left[0] -= nbytes
    return bool(left[0] >= 0)
