"""Which variables the layers of Keras have: one row per class.

Names are those of Keras 2 and 3, in the order in which Keras numbers them.  A row counts only where
the stored settings hold all of ``settings``: another class of the same name stores others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["LAYERS", "Layer", "Part", "parts_of"]

Shape = tuple[int | None, ...] | None
"""None is unknown: of one extent, or of all."""


class Part(NamedTuple):
    """One variable: its names, and its shape as far as the configuration tells."""

    names: tuple[str, ...]
    shape: Shape


class Layer(NamedTuple):
    """Variables of a class, by its settings."""

    settings: tuple[str, ...]
    parts: Callable[[_Settings], Iterator[Part]]


class _Settings:
    """Stored settings by name; what is no plain number of a sane size is unknown."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.stored = stored

    def on(self, key: str, *, default: bool = True) -> bool:
        return bool(self.stored.get(key, default))

    def size(self, key: str, times: int = 1) -> int | None:
        value = self.stored.get(key)
        return value * times if type(value) is int and 0 < value < 1 << 40 else None

    def sizes(self, key: str, rank: int) -> tuple[int | None, ...]:
        value = self.stored.get(key)
        if type(value) is int:
            return (value,) * rank
        if isinstance(value, tuple) and len(value) == rank and all(type(v) is int for v in value):
            return value
        return (None,) * rank


def _part(name: str, *shape: int | None) -> Part:
    return Part((name,), shape)


def _bias(settings: _Settings, size: int | None) -> Iterator[Part]:
    if settings.on("use_bias"):
        yield _part("bias", size)


def _dense(settings: _Settings) -> Iterator[Part]:
    units = settings.size("units")
    yield _part("kernel", None, units)
    yield from _bias(settings, units)


def _conv(rank: int, *, transposed: bool = False) -> Layer:
    def parts(settings: _Settings) -> Iterator[Part]:
        filters = settings.size("filters")
        ends = (filters, None) if transposed else (None, filters)
        yield _part("kernel", *settings.sizes("kernel_size", rank), *ends)
        yield from _bias(settings, filters)

    return Layer(("filters", "kernel_size", "use_bias", "strides"), parts)


def _depthwise(rank: int) -> Layer:
    def parts(settings: _Settings) -> Iterator[Part]:
        shape = (*settings.sizes("kernel_size", rank), None, settings.size("depth_multiplier"))
        yield Part(("depthwise_kernel", "kernel"), shape)
        yield from _bias(settings, None)

    return Layer(("kernel_size", "use_bias", "depth_multiplier"), parts)


def _separable(rank: int) -> Layer:
    def parts(settings: _Settings) -> Iterator[Part]:
        kernel, filters = settings.sizes("kernel_size", rank), settings.size("filters")
        yield _part("depthwise_kernel", *kernel, None, settings.size("depth_multiplier"))
        yield _part("pointwise_kernel", *(1 for _ in range(rank)), None, filters)
        yield from _bias(settings, filters)

    return Layer(("filters", "kernel_size", "use_bias", "depth_multiplier"), parts)


def _batch_normalization(settings: _Settings) -> Iterator[Part]:
    yield from _gamma_beta(settings)
    yield _part("moving_mean", None)
    yield _part("moving_variance", None)


def _gamma_beta(settings: _Settings) -> Iterator[Part]:
    if settings.on("scale"):
        yield Part(("gamma",), None)
    if settings.on("center") and not settings.on("rms_scaling", default=False):
        yield Part(("beta",), None)


def _embedding(settings: _Settings) -> Iterator[Part]:
    yield _part("embeddings", settings.size("input_dim"), settings.size("output_dim"))


def _recurrent(gates: int) -> Layer:
    def parts(settings: _Settings) -> Iterator[Part]:
        units, wide = settings.size("units"), settings.size("units", gates)
        yield _part("kernel", None, wide)
        yield _part("recurrent_kernel", units, wide)
        if settings.on("use_bias"):
            # GRU keeps two rows of them where it resets after the product
            yield Part(("bias",), None if gates == 3 else (wide,))

    return Layer(("units", "use_bias", "recurrent_initializer"), parts)


def _conv_lstm(rank: int) -> Layer:
    def parts(settings: _Settings) -> Iterator[Part]:
        kernel, filters = settings.sizes("kernel_size", rank), settings.size("filters")
        wide = settings.size("filters", 4)
        yield _part("kernel", *kernel, None, wide)
        yield _part("recurrent_kernel", *kernel, filters, wide)
        yield from _bias(settings, wide)

    return Layer(("filters", "kernel_size", "use_bias", "recurrent_initializer"), parts)


def _attention(settings: _Settings) -> Iterator[Part]:
    for _ in range(4):
        yield Part(("kernel",), None)
        if settings.on("use_bias"):
            yield Part(("bias",), None)


def _prelu(settings: _Settings) -> Iterator[Part]:
    del settings
    yield Part(("alpha",), None)


LAYERS: Mapping[str, Layer] = {
    "Dense": Layer(("units", "use_bias", "kernel_initializer"), _dense),
    "Conv1D": _conv(1),
    "Conv2D": _conv(2),
    "Conv3D": _conv(3),
    "Convolution2D": _conv(2),
    "Conv1DTranspose": _conv(1, transposed=True),
    "Conv2DTranspose": _conv(2, transposed=True),
    "Conv3DTranspose": _conv(3, transposed=True),
    "DepthwiseConv1D": _depthwise(1),
    "DepthwiseConv2D": _depthwise(2),
    "SeparableConv1D": _separable(1),
    "SeparableConv2D": _separable(2),
    "BatchNormalization": Layer(("center", "scale", "axis"), _batch_normalization),
    "LayerNormalization": Layer(("center", "scale", "axis"), _gamma_beta),
    "GroupNormalization": Layer(("center", "scale", "axis", "groups"), _gamma_beta),
    "Embedding": Layer(("input_dim", "output_dim", "embeddings_initializer"), _embedding),
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "SimpleRNN": _recurrent(1),
    "ConvLSTM1D": _conv_lstm(1),
    "ConvLSTM2D": _conv_lstm(2),
    "ConvLSTM3D": _conv_lstm(3),
    "MultiHeadAttention": Layer(("num_heads", "key_dim", "use_bias"), _attention),
    "GroupQueryAttention": Layer(("num_query_heads", "head_dim", "use_bias"), _attention),
    "PReLU": Layer(("alpha_initializer",), _prelu),
}
"""By class name; a class that is not here is unknown, never missing."""


def parts_of(class_name: str, settings: Mapping[str, Any]) -> Sequence[Part]:
    """Variables of a layer in Keras' order; none where the class is not known.

    Examples
    --------
    >>> stored = {"units": 10, "use_bias": True, "kernel_initializer": "GlorotUniform"}
    >>> [part.shape for part in parts_of("Dense", stored)], parts_of("Dense", {"units": 10})
    ([(None, 10), (10,)], ())
    """
    layer = LAYERS.get(class_name)
    if layer is None or any(key not in settings for key in layer.settings):
        return ()
    return tuple(layer.parts(_Settings(settings)))
