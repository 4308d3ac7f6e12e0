"""The law that a layer was initialised by: as stored in its configuration, else its framework's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..layers import Layer
from ..tensors import TensorInfo
from .laws import LAWS, Law, law

__all__ = ["STORED", "config_law", "fans", "keras_layout", "own_law"]

STORED = "stored in the configuration"

_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "gamma": ("gamma_initializer",),
    "beta": ("beta_initializer",),
    "mean": ("moving_mean_initializer",),
    "var": ("moving_variance_initializer",),
    "kernel": ("depthwise_initializer", "embeddings_initializer", "kernel_initializer"),
    "pointwise": ("pointwise_initializer",),
    "recurrent": ("recurrent_initializer",),
    "bias": ("bias_initializer",),
}
"""Part of a layer -> what Keras calls its initialiser."""

_NORM = {"gamma": "ones", "beta": "zeros", "mean": "zeros", "var": "ones", "count": "zeros"}


def keras_layout(info: TensorInfo) -> bool:
    """Whether a kernel has its outputs last, by its name."""
    leaf = info.name[max(info.name.rfind("."), info.name.rfind("/")) + 1 :]
    return leaf != "weight" if "/" in info.name else leaf.endswith("kernel")


def fans(shape: tuple[int, ...], *, keras: bool) -> tuple[int, int]:
    """Count inputs and outputs of a weight, as its framework counts them for its initialisers.

    torch takes ``(out, in, *kernel)`` and Keras ``(*kernel, in, out)`` whatever the layer: a
    transposed, grouped or depthwise convolution was made with those numbers, and is again.

    Examples
    --------
    >>> fans((64, 32, 3, 3), keras=False), fans((3, 3, 32, 64), keras=True)
    ((288, 576), (288, 576))
    """
    if not shape:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    if keras:
        field = math.prod(shape[:-2])
        return shape[-2] * field, shape[-1] * field
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def config_law(value: object) -> Law | None:
    """Law of a stored initialiser: its name, or class and numbers; None for one not known here.

    Examples
    --------
    >>> print(config_law({"class_name": "RandomNormal", "stddev": 0.02}))
    normal(mean=0, std=0.02)
    >>> print(config_law("GlorotUniform"), config_law("mine>Fancy"))
    glorot_uniform(mode=fan_avg) None
    """
    numbers: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        numbers, value = value, value.get("class_name")
    if not isinstance(value, str):
        return None
    name = re.sub("([a-z])([A-Z])", r"\1_\2", value).lower()
    if numbers.get("input_axes") is not None or numbers.get("output_axes") is not None:
        return None  # fans of its own
    defaults = _KERAS_DEFAULTS.get(name, {})
    row = LAWS.get(_KERAS_NAMES.get(name, name))
    if row is None or (name not in LAWS and name not in _KERAS_NAMES):
        return None
    spelt = {"stddev": "std", "minval": "low", "maxval": "high"}
    given = {spelt.get(key, key): number for key, number in numbers.items()}
    usable = {key: given.get(key, defaults.get(key)) for key in row.defaults}
    try:
        return law(
            _KERAS_NAMES.get(name, name), **{k: v for k, v in usable.items() if v is not None}
        )
    except (UsageError, TypeError):  # numbers that no such law has
        return None


_KERAS_NAMES: Mapping[str, str] = {
    "zero": "zeros",
    "one": "ones",
    "random_normal": "normal",
    "random_uniform": "uniform",
}

_KERAS_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    **{key: {"mean": 0.0, "std": 0.05} for key in ("normal", "random_normal", "truncated_normal")},
    **{key: {"low": -0.05, "high": 0.05} for key in ("uniform", "random_uniform")},
    "constant": {"value": 0.0},
}


def own_law(layer: Layer, part: str) -> tuple[Law, str] | None:
    """Law of a part of a layer, and where it is known from; None where no law is known.

    Data's own statistics (Keras' Normalization), scales, masks and norms of weight-norm pairs were
    never drawn.
    """
    settings = layer.config.settings if layer.config is not None else {}
    stored = next((settings[key] for key in _SETTINGS.get(part, ()) if key in settings), None)
    if stored is not None:
        found = config_law(stored)
        if found is None or layer.kind == "normalization":
            return None
        if part == "bias" and layer.kind == "recurrent" and _forgets(layer):
            found = law("unit_forget_bias") if found.name == "zeros" else None
        return (found, STORED) if found else None
    keras = layer.keras
    default = _keras_default(layer, part) if keras else _torch_default(layer, part)
    return (default, "Keras' default" if keras else "torch's default") if default else None


def _keras_default(layer: Layer, part: str) -> Law | None:
    if layer.kind in ("batchnorm", "norm"):
        return law(_NORM[part]) if part in _NORM else None
    if layer.kind in ("conv", "dense", "recurrent") and not layer.told_by.startswith("Flax"):
        if part == "bias" and layer.kind == "recurrent":
            return (
                law("unit_forget_bias" if _forgets(layer) else "zeros") if _plain(layer) else None
            )
        name = {
            "kernel": "glorot_uniform", "pointwise": "glorot_uniform", "recurrent": "orthogonal",
            "bias": "zeros", "down": "he_uniform", "up": "zeros",
        }.get(part)  # fmt: skip
        return law(name) if name else None
    if layer.kind == "embedding" and part == "kernel" and not layer.told_by.startswith("Flax"):
        return law("uniform", low=-0.05, high=0.05)
    return None


def _gates(layer: Layer) -> tuple[int, int]:
    """Gates of a recurrent layer of Keras, and elements of its bias per gate and unit."""
    recurrent, bias = layer.parts.get("recurrent"), layer.parts.get("bias")
    if recurrent is None or bias is None or len(recurrent.shape) < 2 or not recurrent.shape[-2]:
        return 0, 0
    units = recurrent.shape[-2]
    return recurrent.shape[-1] // units, bias.size // units


def _plain(layer: Layer) -> bool:
    """Whether a bias has one element a gate, or is a GRU's, which has two and starts at 0."""
    gates, biases = _gates(layer)
    return gates > 0 and gates in (biases, 3)


def _forgets(layer: Layer) -> bool:
    """Whether it is an LSTM whose forget gate starts open, as Keras' do unless told not to."""
    settings = layer.config.settings if layer.config is not None else {}
    return _gates(layer) == (4, 4) and settings.get("unit_forget_bias", True) is True


def _torch_default(layer: Layer, part: str) -> Law | None:
    kind = layer.kind
    if kind in ("batchnorm", "norm"):
        return law(_NORM[part]) if part in _NORM else None
    if kind == "embedding" and part == "kernel":
        return law("normal", std=1.0)
    if kind == "recurrent":
        return _recurrent(layer)
    if kind == "attention":
        name = {"bias": "zeros", "bias_k": "xavier_normal", "bias_v": "xavier_normal"}.get(part)
        return law(name or "xavier_uniform") if name or part.startswith("kernel") else None
    if kind == "lora" and part in ("down", "up"):
        info = layer.parts[part]
        if "lora_embedding_" in info.name:
            return law("zeros") if part == "down" else law("normal", std=1.0)
        return law("kaiming_uniform", a=math.sqrt(5)) if part == "down" else law("zeros")
    weights = layer.parts.get("kernel") or layer.parts.get("v")
    if kind not in ("conv", "dense", "lora", "weightnorm", "spectralnorm") or weights is None:
        return None
    if len(weights.shape) < 2 or part not in ("kernel", "bias") + ("v",) * (kind == "weightnorm"):
        return None
    if layer.class_name == "Bilinear":
        return _bounded(weights.shape[1])
    if part == "bias":
        return _bounded(fans(weights.shape, keras=False)[0])
    return law("kaiming_uniform", a=math.sqrt(5))


def _recurrent(layer: Layer) -> Law | None:
    """Every tensor of torch's recurrent layers falls within one over the root of the hidden size."""
    info = layer.parts.get("projection") or layer.parts.get("recurrent")
    return _bounded(info.shape[-1]) if info is not None and len(info.shape) == 2 else None


def _bounded(fan: int) -> Law | None:
    bound = 1 / math.sqrt(max(1, fan))
    return law("uniform", low=-bound, high=bound)
