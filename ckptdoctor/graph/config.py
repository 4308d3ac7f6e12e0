"""Feeds from a stored Keras configuration, which names what feeds every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..layers import Layer
from ..tensors import LayerConfig
from .feeds import Feed
from .kernels import fit, is_kernel

__all__ = ["HOW", "config_feeds"]

HOW = "the Keras config"
MAX_THROUGH = 8

_PASSING = frozenset(
    {
        "Activation",
        "ReLU",
        "LeakyReLU",
        "PReLU",
        "ELU",
        "ThresholdedReLU",
        "Softmax",
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "GaussianDropout",
        "GaussianNoise",
        "AlphaDropout",
        "ActivityRegularization",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Reshape",
        "Permute",
        "Flatten",
        "RepeatVector",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "Identity",
        "Masking",
        "Resizing",
        "CenterCrop",
        "RandomFlip",
        "RandomCrop",
        "RandomRotation",
        "RandomZoom",
        "RandomTranslation",
        "RandomContrast",
        "RandomBrightness",
    }
)
"""They keep what a channel is and about how large it is; average poolings make it smaller."""
_INPUTS = frozenset({"InputLayer", "Rescaling", "Normalization"})
_SUMS = frozenset({"Add", "Average", "Maximum", "Minimum", "Subtract", "Multiply", "Dot"})
_NORMS = frozenset(
    {
        "BatchNormalization",
        "SyncBatchNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "UnitNormalization",
        "SpectralNormalization",
        "InstanceNormalization",
        "Normalization",
    }
)
_BOUNDED = frozenset(
    {
        "Embedding",
        "LSTM",
        "GRU",
        "SimpleRNN",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "Bidirectional",
        "RNN",
        "Softmax",
        "Discretization",
        "CategoryEncoding",
        "Hashing",
        "IntegerLookup",
        "StringLookup",
        "TextVectorization",
        "MultiHeadAttention",
        "Attention",
        "AdditiveAttention",
    }
)
"""Their outputs are bounded, or say nothing about how large the model's input is."""
_BOUNDED_ACTIVATIONS = frozenset({"sigmoid", "hard_sigmoid", "tanh", "softmax", "softsign"})


class _Origin(NamedTuple):
    """Where the output of a layer comes from."""

    source: str
    kernel: Layer | None = None
    why: str = HOW
    through: tuple[str, ...] = ()


def config_feeds(
    configs: Mapping[str, LayerConfig], layers: Mapping[str, Layer]
) -> tuple[dict[str, Feed], set[str]]:
    """Tell what feeds each BatchNorm of a configuration, and which see the input unnormalised.

    Parameters
    ----------
    configs
        Stored configuration in data-flow order; one pass, so what a cycle refers to is unknown.
    layers
        Name in ``configs`` -> the layer that its tensors form.

    Returns
    -------
    feeds, first
        By the layers' keys.
    """
    origins: dict[str, _Origin] = {}
    raw: dict[str, bool] = {}
    wrapped = {name.rpartition("/")[0]: name for name in configs if "/" in name}
    feeds: dict[str, Feed] = {}
    first: set[str] = set()
    for name, config in configs.items():
        before = [raw.get(each, False) for each in config.inputs[:1000]]
        unnormalised = any(before) or not config.inputs
        layer = layers.get(name)
        if layer is not None and layer.kind == "batchnorm":
            feeds[layer.key] = _feed(_fed(config, origins), layer.channels)
            if unnormalised:
                first.add(layer.key)
        inner = wrapped.get(name) if config.class_name == "TimeDistributed" else None
        acting = configs[inner] if inner else config
        raw[name] = unnormalised and not _resets(acting)
        origins[name] = _origin(acting, layers.get(inner or name), origins)
    return feeds, first


def _resets(config: LayerConfig) -> bool:
    """Whether what comes out says nothing about the scale of the model's input."""
    return (
        config.class_name in _NORMS
        or config.class_name in _BOUNDED
        or config.activation in _BOUNDED_ACTIVATIONS
    )


def _fed(config: LayerConfig, origins: Mapping[str, _Origin]) -> _Origin:
    """Origin of what a layer gets; several inputs are calls of a shared layer."""
    if not config.inputs:
        return _Origin("input")
    found = [origins.get(name) for name in config.inputs[:1000]]
    one = found[0]
    if one is None:
        return _Origin("unknown", why="the Keras config goes in circles")
    if any(other is None or other[:2] != one[:2] for other in found[1:]):
        return _Origin("unknown", why="it is shared by several branches")
    return one


def _origin(config: LayerConfig, layer: Layer | None, origins: Mapping[str, _Origin]) -> _Origin:
    kind = config.class_name
    if layer is not None and is_kernel(layer):
        fused = config.activation if config.activation not in (None, "linear") else None
        return _Origin("kernel", layer, through=(fused,) if fused else ())
    if kind == "InputLayer":
        return _Origin("input")
    if kind in _NORMS:
        return _Origin("input" if kind == "Normalization" else "norm", through=(kind,))
    if kind in _SUMS:
        return _Origin("sum", why=f"{HOW}: {kind}")
    if kind == "Concatenate":
        return _Origin("concat")
    if kind in _PASSING or kind in _INPUTS:
        fed = _fed(config, origins)
        return fed._replace(through=(_said(config), *fed.through)[:MAX_THROUGH])
    return _Origin("unknown", why=f"{HOW} says {kind[:40]!r}")


def _said(config: LayerConfig) -> str:
    if config.class_name == "Activation" and config.activation:
        return config.activation
    return config.class_name


def _feed(origin: _Origin, channels: int) -> Feed:
    kernel = origin.kernel
    axes = (fit(kernel, channels).axes or kernel.unit_axes) if kernel is not None else ()
    return Feed(kernel, origin.source, origin.why, origin.through, axes, channels)
